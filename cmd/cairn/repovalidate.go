package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

func validateStoreCommand() *cli.Command {
	return leaf("validate-store", "URL", "try whether a store can keep a repository, with timings; it may belong to one", []cli.Flag{outputFlag()}, validateStore)
}

// storeValidation is the JSON of a validation.
type storeValidation struct {
	URL        string            `json:"url"`
	Repository string            `json:"repository,omitempty"`
	Store      string            `json:"store,omitempty"`
	Fit        string            `json:"fit"` // everything, writing, nothing
	Proofs     []storeProof      `json:"proofs"`
	Timings    []storeCallTiming `json:"timings"`
	WriteRate  float64           `json:"write_bytes_per_second"`
	ReadRate   float64           `json:"read_bytes_per_second"`
}

type storeProof struct {
	What    string  `json:"what"`
	Need    string  `json:"needed_for"`
	OK      bool    `json:"ok"`
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
}

type storeCallTiming struct {
	Call   string  `json:"call"`
	Calls  int     `json:"calls"`
	Median float64 `json:"median_seconds"`
	Max    float64 `json:"max_seconds"`
}

// validateStore tries a store. One that is not fit for everything is the exit code
// 5, as a repository that cannot be used.
func validateStore(c *cli.Context) (err error) {
	p, err := placeOf(c.Args().First())
	if err != nil {
		return err
	}
	// A folder that is no store yet is made one for the trial.
	var folders newFolders
	if err = folders.note([]string{c.Args().First()}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folders.remove()) }()
	s, err := p.open(true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	bar := newBar(c.App.ErrWriter)
	v, err := repository.ValidateStore(c.Context, s, func(p repository.CheckProgress) { bar.show(p.Phase, p.Done, p.Total) })
	bar.end()
	if err != nil {
		return err
	}
	out := storeValidation{
		URL: p.String(), Repository: v.Repository, Store: v.Store, Fit: v.Fit(), Proofs: []storeProof{}, Timings: []storeCallTiming{},
		WriteRate: v.WriteRate, ReadRate: v.ReadRate,
	}
	for _, x := range v.Proofs {
		proof := storeProof{What: x.What, Need: x.Need, OK: x.Err == nil, Seconds: x.Took.Seconds()}
		if x.Err != nil {
			proof.Error = clean(x.Err.Error())
		}
		out.Proofs = append(out.Proofs, proof)
	}
	for _, x := range v.Timings {
		out.Timings = append(out.Timings, storeCallTiming{x.Call, x.Calls, x.Median.Seconds(), x.Max.Seconds()})
	}
	err = emit(c, out, func(t *table) { out.show(t, v) })
	if v.Left != nil && !errors.Is(v.Left, objstore.ErrDown) {
		err = errors.Join(err, fmt.Errorf("something of the trial is left under probe/ in %s: %w", p, v.Left))
	}
	switch v.Fit() {
	case "everything":
		return err
	case "writing":
		return errors.Join(err, fmt.Errorf("store %s can be written to and cannot be pruned safely: %w", p, repository.ErrForeign))
	default:
		return errors.Join(err, fmt.Errorf("store %s cannot keep a repository: %w", p, repository.ErrForeign))
	}
}

func (out storeValidation) show(t *table, v repository.StoreValidation) {
	if out.Repository != "" {
		t.field("store", fmt.Sprintf("%s of repository %s", out.Store, out.Repository))
	}
	for _, x := range out.Proofs {
		verdict := "yes"
		if !x.OK {
			verdict = "NO: " + x.Error
		}
		t.field(x.What, verdict)
	}
	for _, x := range v.Timings {
		t.field(x.Call, fmt.Sprintf("%s, at most %s (%d calls)", x.Median.Round(10*time.Microsecond), x.Max.Round(10*time.Microsecond), x.Calls))
	}
	if out.WriteRate > 0 {
		t.field("4 MiB", fmt.Sprintf("written at %.0f MB/s, read at %.0f MB/s, one at a time", out.WriteRate/1e6, out.ReadRate/1e6))
	}
	t.field("fit for", map[string]string{"everything": "everything", "writing": "writing and reading, not for pruning", "nothing": "nothing"}[out.Fit])
}
