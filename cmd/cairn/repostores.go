package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/repository"
)

// repoStoreStatus is the JSON of one store.
type repoStoreStatus struct {
	agent.StoreStatus
	Capabilities []repository.Capability `json:"capabilities"` // that it proved when it became a member
	Probed       time.Time               `json:"probed_at,omitzero"`
}

func repoStatus(c *cli.Context, r *repository.Repository) error {
	seen, err := r.LastSeen(c.Context)
	if err != nil {
		return err
	}
	proved, err := r.Capabilities(c.Context)
	if err != nil {
		return err
	}
	out := []repoStoreStatus{}
	for _, s := range r.Status(c.Context) {
		if s.URL == "" && seen[s.ID] != "" {
			s.Error = "it was at " + seen[s.ID] + "; " + s.Error
		}
		known := proved[s.ID]
		out = append(out, repoStoreStatus{
			agent.StoreStatus{URL: s.URL, ID: s.ID, State: string(s.State), Error: s.Error, Owed: s.Owed}, list(known.Capabilities), known.Probed,
		})
	}
	return emit(c, out, func(t *table) {
		t.row("STORE", "STATE", "OWED", "ID", "PROVED", "")
		for _, s := range out {
			t.row(dash(s.URL), s.State, s.Owed, dash(s.ID), dash(provedText(s.Capabilities)), s.Error)
		}
	})
}

func provedText(l []repository.Capability) string {
	words := make([]string, len(l))
	for i, c := range l {
		words[i] = string(c)
	}
	return strings.Join(words, ",")
}

// storeChange is the JSON of a store that was replaced or added.
type storeChange struct {
	Lost    string   `json:"lost,omitempty"`
	Joined  string   `json:"joined"`
	Copied  int      `json:"copied"`  // control objects
	Rebuilt int      `json:"rebuilt"` // shards and control objects, on all stores
	Unable  []string `json:"lost_data"`
}

func replaceStore(c *cli.Context, r *repository.Repository) error {
	lost, err := lostStore(c, r, c.Args().First())
	if err != nil {
		return err
	}
	return joinStore(c, c.Args().Get(1), func(p place, progress func(repository.CheckProgress)) (repository.StoreChange, error) {
		s, err := p.open(true)
		if err != nil {
			return repository.StoreChange{}, err
		}
		return r.ReplaceStore(c.Context, lost, s, progress)
	})
}

func addStore(c *cli.Context, r *repository.Repository) error {
	return joinStore(c, c.Args().First(), func(p place, progress func(repository.CheckProgress)) (repository.StoreChange, error) {
		s, err := p.open(true)
		if err != nil {
			return repository.StoreChange{}, err
		}
		return r.AddStore(c.Context, s, progress)
	})
}

// joinStore makes the store with this URL a member.
func joinStore(c *cli.Context, url string, join func(place, func(repository.CheckProgress)) (repository.StoreChange, error)) error {
	p, err := placeOf(url)
	if err != nil {
		return err
	}
	bar := newBar(c.App.ErrWriter)
	done, err := join(p, func(p repository.CheckProgress) { bar.show(p.Phase, p.Done, p.Total) })
	bar.end()
	if err != nil {
		return err
	}
	out := storeChange{Lost: done.Lost, Joined: done.Joined, Copied: done.Copied, Unable: list(done.Repair.Lost)}
	for _, s := range done.Repair.Stores {
		out.Rebuilt += s.Mended
	}
	err = emit(c, out, func(t *table) {
		t.field("member", fmt.Sprintf("%s is store %s", p, done.Joined))
		if done.Lost != "" {
			t.field("in the place of", "store "+done.Lost+", which is none any more")
		}
		t.field("copied", fmt.Sprintf("%d records", out.Copied))
		t.field("rebuilt", fmt.Sprintf("%d shards and records", out.Rebuilt))
		t.field("next", "name "+p.String()+" to the agents: stores: in cairn.yaml, or --store")
	})
	if err == nil && len(out.Unable) > 0 {
		err = fmt.Errorf("the store is a member now, and %d packs or records cannot be rebuilt from what the stores have, such as: %s: bring back the stores that are down, then \"cairn repo repair --apply\" (%w)", len(out.Unable), out.Unable[0], errDamage)
	}
	return err
}

// lostStore finds the member that is meant by a store's ID or URL. What is gone
// does not say who it was: then it is the only one that is missing, or backups say
// who was there.
func lostStore(c *cli.Context, r *repository.Repository, ref string) (string, error) {
	status := r.Status(c.Context)
	p, placeErr := placeOf(ref)
	var missing []string
	for _, s := range status {
		switch {
		case s.ID != "" && s.ID == ref:
			return s.ID, nil
		case s.ID != "" && s.State == repository.StoreUp && placeErr == nil && samePlace(s.URL, p):
			return s.ID, nil
		case s.ID != "" && s.State != repository.StoreUp:
			missing = append(missing, s.ID)
		}
	}
	changes, err := r.Changes(c.Context)
	if err != nil {
		return "", err
	}
	for _, ch := range changes {
		if ch.Lost != "" {
			return ch.Lost, nil // to be gone on with
		}
	}
	switch {
	case len(ref) == 32 && !strings.ContainsAny(ref, "/:."):
		return "", missingf("there is no store %s in this repository: \"cairn repo status\" shows its stores", ref)
	case placeErr != nil:
		return "", placeErr
	case len(missing) == 0:
		return "", missingf("no store is missing, and %s is none of the members: \"cairn repo status\" shows them", p)
	case len(missing) == 1:
		return missing[0], nil
	}
	seen, err := r.LastSeen(c.Context)
	if err != nil {
		return "", err
	}
	for _, id := range missing {
		if samePlace(seen[id], p) {
			return id, nil
		}
	}
	return "", usagef("%d stores are missing, and none of them is known to have been at %s: name the one that is lost by its ID; \"cairn repo status\" shows where they were", len(missing), p)
}

// samePlace compares the URL of a store with a place.
func samePlace(url string, p place) bool {
	o, err := placeOf(url)
	return err == nil && o.String() == p.String()
}

// changeResult is the JSON of one change.
type changeResult struct {
	ID     string    `json:"id"`
	What   string    `json:"what"`
	Lost   string    `json:"lost,omitempty"`
	Joined string    `json:"joining,omitempty"`
	By     string    `json:"by"`
	Began  time.Time `json:"began_at"`
}

// abandonResult is the JSON of a change that was abandoned.
type abandonResult struct {
	Abandoned string   `json:"abandoned"`
	Expelled  []string `json:"no_members_any_more,omitempty"` // store IDs
}

func changesCommand() *cli.Command {
	cmd := leaf("changes", "", "replacements and additions of stores, and rotations of the key, that are not finished", repositoryFlags(
		&cli.StringFlag{Name: "abandon", Usage: "give up the change with this `ID`, whose process is gone for good"},
		&cli.StringSliceFlag{Name: "without", Usage: "of a rotation of the key: the store with this `URL` or ID is gone for good (repeatable)"},
	), withRepository(repoChanges))
	cmd.Description = "A change whose process was killed is gone on with by the command that began it. --abandon is for when that\n" +
		"cannot be. A rotation of the key is given up by any password while all stores answer and none has got the\n" +
		"new key. A store that does not answer may have, so that it has to come back – or to be named with --without,\n" +
		"which says that it is gone for good. It is no member then, and nothing that it says or holds counts any more:\n" +
		"if it comes back after all, empty it before it is used again. Then put another store in its place with\n" +
		"\"cairn repo replace-store\"; until then there is no prune and one store less to lose."
	return cmd
}

func abandonChange(c *cli.Context, r *repository.Repository, id string) error {
	out := abandonResult{Abandoned: id}
	for _, ref := range c.StringSlice("without") {
		lost, err := lostStore(c, r, ref)
		if err != nil {
			return err
		}
		out.Expelled = append(out.Expelled, lost)
	}
	if err := r.AbandonChange(c.Context, id, out.Expelled...); err != nil {
		if errors.Is(err, repository.ErrNotFound) {
			err = fmt.Errorf("there is no unfinished change %s: \"cairn repo changes\" shows those there are: %w", id, err)
		}
		return err
	}
	return emit(c, out, func(t *table) {
		t.row(fmt.Sprintf("change %s is abandoned; if a store was to join, empty it before it is named again", id))
		for _, s := range out.Expelled {
			t.row(fmt.Sprintf("store %s is no member any more, whatever it has; put another in its place with \"cairn repo replace-store\"", s))
		}
	})
}

func repoChanges(c *cli.Context, r *repository.Repository) error {
	if id := c.String("abandon"); id != "" {
		return abandonChange(c, r, id)
	}
	if c.IsSet("without") {
		return usagef("--without goes with --abandon")
	}
	all, err := r.Changes(c.Context)
	if err != nil {
		return err
	}
	out := []changeResult{}
	for _, ch := range all {
		out = append(out, changeResult{ch.ID, ch.What, ch.Lost, ch.Joining, ch.By, ch.Began})
	}
	return emit(c, out, func(t *table) {
		t.row("CHANGE", "LOST", "JOINING", "BY", "SINCE", "ID")
		for _, ch := range out {
			t.row(ch.What, dash(ch.Lost), dash(ch.Joined), ch.By, when(ch.Began), ch.ID)
		}
	})
}
