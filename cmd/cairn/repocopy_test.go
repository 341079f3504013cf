package main

import (
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repocopy"
	"github.com/cairnbackup/cairn/internal/repository"
)

// What went meanwhile is no failure, unless it was named; what was not tried is counted.
func TestNotCopied(t *testing.T) {
	of := func(states ...repocopy.State) (rs []repocopy.Result) {
		for _, s := range states {
			r := repocopy.Result{Backup: repository.Backup{ID: "b", Volume: "v"}, State: s, Warning: "it would fail as well"}
			if s == repocopy.Failed {
				r.Err = objstore.ErrNoSpace
			}
			rs = append(rs, r)
		}
		return rs
	}
	for _, tt := range []struct {
		name  string
		rs    []repocopy.Result
		named bool
		code  int
		says  string
	}{
		{"all copied", of(repocopy.Copied, repocopy.Present, repocopy.Older), false, 0, ""},
		{"gone", of(repocopy.Copied, repocopy.Gone), false, 0, ""},
		{"gone, named", of(repocopy.Gone), true, exitNotFound, "1 of 1 backups were not copied: the lines above say why"},
		{"in the trash", of(repocopy.InTrash), false, 0, ""},
		{"in the trash, named", of(repocopy.InTrash), true, exitBusy, "1 of 1 backups were not copied: the lines above say why"},
		{"failed", of(repocopy.Failed, repocopy.NotTried, repocopy.NotTried), false, exitFailed, "1 of 3 backups were not copied, 2 were not tried: the lines above say why"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := notCopied(tt.rs, tt.named)
			if exitCode(err) != tt.code || err != nil && err.Error() != tt.says {
				t.Error(exitCode(err), err)
			}
		})
	}
	for s, want := range map[repocopy.State]string{
		repocopy.Gone: "it was deleted meanwhile", repocopy.NotTried: ": it would fail as well", repocopy.Older: "a newer one of the volume",
	} {
		if line := copyLine(of(s)[0], false); !strings.Contains(line, want) {
			t.Error(line)
		}
	}
	sum := copySum(of(repocopy.Gone, repocopy.NotTried, repocopy.NotTried, repocopy.Older))
	if sum.Gone != 1 || sum.NotTried != 2 || sum.Older != 1 || sum.NotCopied != 0 {
		t.Errorf("%+v", sum)
	}
}
