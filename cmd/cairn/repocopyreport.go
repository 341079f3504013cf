package main

import (
	"fmt"
	"strings"

	"github.com/cairnbackup/cairn/internal/repocopy"
)

// copyResult is the JSON of a copy.
type copyResult struct {
	DryRun      bool         `json:"dry_run"`
	Repository  string       `json:"repository"` // ID of the destination
	Copied      int          `json:"copied"`     // or would be
	Present     int          `json:"present"`
	Older       int          `json:"older"`      // left out, as there is a newer one of the volume
	Gone        int          `json:"gone"`       // deleted in the source meanwhile
	NotTried    int          `json:"not_tried"`  // behind a failure
	NotCopied   int          `json:"not_copied"` // failed, unconfirmed, or in the destination's trash
	BytesRead   int64        `json:"bytes_read"`
	BytesNew    int64        `json:"bytes_new"`
	BytesStored int64        `json:"bytes_stored"`
	BytesShards int64        `json:"bytes_shards"`
	BytesSkip   int64        `json:"bytes_skipped"`
	Backups     []copyRecord `json:"backups"`
}

// copyRecord is what became of one backup. Its figures are the copy's.
type copyRecord struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	Volume      string         `json:"volume"`
	VolumeID    string         `json:"volume_id"`
	Result      repocopy.State `json:"result"`
	Base        string         `json:"base,omitempty"`
	BytesRead   int64          `json:"bytes_read"`
	BytesNew    int64          `json:"bytes_new"`
	BytesStored int64          `json:"bytes_stored"`
	BytesShards int64          `json:"bytes_shards"`
	BytesSkip   int64          `json:"bytes_skipped"`
	Warning     string         `json:"warning,omitempty"`
	Error       string         `json:"error,omitempty"`
}

// copyLine says what became of one backup.
func copyLine(r repocopy.Result, dryRun bool) string {
	b := r.Backup
	what := fmt.Sprintf("backup %s of %s, %s", b.ID, b.Volume, when(b.Created))
	if b.Name != "" {
		what += ", " + b.Name
	}
	from := ""
	if r.Base != "" {
		from = ", over " + r.Base
	}
	warning := ""
	if r.Warning != "" {
		warning = "; " + r.Warning
	}
	switch r.State {
	case repocopy.Copied:
		if dryRun {
			return fmt.Sprintf("would copy  %s: would read %s%s%s", what, human(r.Read), from, warning)
		}
		return fmt.Sprintf("copied      %s: read %s, stored %s%s%s", what, human(r.Read), human(r.Stored), from, warning)
	case repocopy.Present:
		return fmt.Sprintf("skipped     %s: the other repository has it", what)
	case repocopy.InTrash:
		return fmt.Sprintf("skipped     %s: it is in the other repository's trash; \"cairn repo undelete %s\" with that one's --store and --password-file takes it back", what, b.ID)
	case repocopy.Unconfirmed:
		return fmt.Sprintf("skipped     %s: it is unconfirmed: nothing proves that it was made", what)
	case repocopy.Older:
		return fmt.Sprintf("left out    %s: the other repository has a newer one of the volume; --older, or its ID, copies it all the same", what)
	case repocopy.Gone:
		return fmt.Sprintf("gone        %s: it was deleted meanwhile%s", what, warning)
	case repocopy.NotTried:
		return fmt.Sprintf("not tried   %s: %s", what, r.Warning)
	case repocopy.Failed:
	}
	return fmt.Sprintf("failed      %s: %v%s", what, r.Err, warning)
}

func copySum(results []repocopy.Result) copyResult {
	sum := copyResult{Backups: []copyRecord{}}
	for _, r := range results {
		switch r.State {
		case repocopy.Copied:
			sum.Copied++
		case repocopy.Present:
			sum.Present++
		case repocopy.Older:
			sum.Older++
		case repocopy.Gone:
			sum.Gone++
		case repocopy.NotTried:
			sum.NotTried++
		case repocopy.InTrash, repocopy.Unconfirmed, repocopy.Failed:
			sum.NotCopied++
		}
		x := copyRecord{
			ID: r.Backup.ID, Name: r.Backup.Name, Volume: r.Backup.Volume, VolumeID: r.Backup.VolumeID, Result: r.State, Base: r.Base,
			BytesRead: r.Read, BytesNew: r.New, BytesStored: r.Stored, BytesShards: r.Shards, BytesSkip: r.Skipped, Warning: r.Warning,
		}
		if r.Err != nil {
			x.Error = r.Err.Error()
		}
		sum.Backups = append(sum.Backups, x)
		sum.BytesRead += r.Read
		sum.BytesNew += r.New
		sum.BytesStored += r.Stored
		sum.BytesShards += r.Shards
		sum.BytesSkip += r.Skipped
	}
	return sum
}

func copySumFields(t *table, sum copyResult) {
	would := ""
	if sum.DryRun {
		would = " would be"
	}
	parts := []string{fmt.Sprintf("%d%s copied, %d there already, %d not copied", sum.Copied, would, sum.Present, sum.NotCopied)}
	for _, more := range []struct {
		n    int
		what string
	}{{sum.NotTried, "not tried"}, {sum.Older, "older and left out"}, {sum.Gone, "deleted meanwhile"}} {
		if more.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", more.n, more.what))
		}
	}
	t.field("backups", strings.Join(parts, ", "))
	t.field("read", exact(sum.BytesRead))
	if !sum.DryRun {
		t.field("stored", exact(sum.BytesStored))
	}
	t.field("skipped", exact(sum.BytesSkip)+": holes, and what the other repository has")
}

// copyError is backups that were asked for and are not in the destination. Each
// was named before, with its reason.
type copyError struct {
	text   string
	causes []error
}

// Error returns the sentence.
func (e *copyError) Error() string { return e.text }

// Unwrap returns the causes, for the exit code.
func (e *copyError) Unwrap() []error { return e.causes }

// notCopied is the error of a run that is not a whole success. What is in the
// trash over there, or went here meanwhile, was deleted on purpose: that is one only
// for a backup that was named.
func notCopied(results []repocopy.Result, named bool) error {
	e := &copyError{}
	waiting := 0
	for _, r := range results {
		switch r.State {
		case repocopy.Failed:
			e.causes = append(e.causes, r.Err)
		case repocopy.InTrash, repocopy.Unconfirmed:
			if named {
				e.causes = append(e.causes, busyf("backup %s was not copied", r.Backup.ID))
			}
		case repocopy.Gone:
			if named {
				e.causes = append(e.causes, missingf("backup %s was deleted meanwhile", r.Backup.ID))
			}
		case repocopy.NotTried:
			waiting++
		case repocopy.Copied, repocopy.Present, repocopy.Older:
		}
	}
	if len(e.causes) == 0 {
		return nil
	}
	e.text = fmt.Sprintf("%d of %d backups were not copied", len(e.causes), len(results))
	if waiting > 0 {
		e.text += fmt.Sprintf(", %d were not tried", waiting)
	}
	e.text += ": the lines above say why"
	return e
}
