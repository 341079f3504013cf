package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
)

// rotateResult is the JSON of a rotation of the key.
type rotateResult struct {
	Rotations int         `json:"rotations"` // by now
	Finished  bool        `json:"finished_earlier"`
	Key       keyResult   `json:"key"`
	Stopped   []keyResult `json:"stopped"`
	Left      int         `json:"objects_left"`
}

func keyRotate(c *cli.Context, r *repository.Repository) error {
	done, err := r.RotateKey(c.Context)
	if err != nil {
		return err
	}
	out := rotateResult{Rotations: done.Epoch, Finished: done.Finished, Key: keyOf(done.Key), Stopped: []keyResult{}, Left: done.Left}
	for _, k := range done.Stopped {
		out.Stopped = append(out.Stopped, keyOf(k))
	}
	return emit(c, out, func(t *table) {
		if done.Finished {
			t.row("a rotation of the key that was interrupted is finished now; give the command again for another one")
		} else {
			t.row("the key is rotated: backups that begin from now on are sealed under a new one")
		}
		t.field("works on", "the password that was used, as key "+done.Key.ID)
		for _, k := range out.Stopped {
			t.field("stopped", fmt.Sprintf("key %s, label %s, of %s", k.ID, dash(k.Label), dash(when(k.Created))))
		}
		if len(out.Stopped) > 0 {
			t.field("next", "add those passwords anew with \"cairn repo key add\"; agents that use them fail their backups until then")
		}
		if done.Left > 0 {
			t.field("left", fmt.Sprintf("%d objects of those keys, on stores that did not delete them: they open nothing, and a prune removes them", done.Left))
		}
		t.field("sheets", "every recovery sheet has stopped working: print a new one with \"cairn repo key export\", and destroy the old ones")
		t.field("not undone", "what was written before stays sealed under the old key: who has it and a copy of the stores reads that")
		t.field("", "chunk IDs and names stay keyed as before, so that nothing is stored twice: with the old key one can still test whether a known content or name is there")
		t.field("", "control records stay tagged as before: who has the old key and may write to the stores can make such records, though no backups")
	})
}
