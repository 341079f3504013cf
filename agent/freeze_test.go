package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/quiesce"
)

// fakeHook counts, and says whether it is on disk that something has to be thawed.
type fakeHook struct {
	calls []string
	fail  error // of all tries to thaw
	box   *icebox
}

func (f *fakeHook) noted() bool {
	_, err := os.Stat(f.box.file("id"))
	return err == nil
}

// Freeze freezes.
func (f *fakeHook) Freeze(context.Context) error {
	f.calls = append(f.calls, fmt.Sprintf("freeze, noted %t", f.noted()))
	return nil
}

// Thaw thaws.
func (f *fakeHook) Thaw(context.Context) error {
	f.calls = append(f.calls, fmt.Sprintf("thaw, noted %t", f.noted()))
	return f.fail
}

func testIcebox(t *testing.T) (*icebox, *fakeHook) {
	t.Helper()
	b, err := openIcebox(filepath.Join(t.TempDir(), "frozen"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeHook{box: b}
	b.hook = func(frozenNote) quiesce.Hook { return f }
	return b, f
}

// TestNotedWhileFrozen: as long as something is frozen there is a note of it on disk, and
// no longer.
func TestNotedWhileFrozen(t *testing.T) {
	b, f := testIcebox(t)
	err := b.hold(t.Context(), frozenNote{VolumeID: "id", Volume: "disk"}, func(context.Context) error {
		f.calls = append(f.calls, fmt.Sprintf("instant, noted %t", f.noted()))
		return nil
	})
	if want := []string{"freeze, noted true", "instant, noted true", "thaw, noted true"}; err != nil || f.noted() || !slices.Equal(f.calls, want) {
		t.Errorf("%v, noted %t, %q", err, f.noted(), f.calls)
	}
}

// TestFreezeOutlivesAgent: what a killed agent began to freeze may be frozen only after its
// successor has thawed it, which does so once more.
func TestFreezeOutlivesAgent(t *testing.T) {
	b, f := testIcebox(t)
	if err := b.note(frozenNote{VolumeID: "id", Volume: "disk", Since: b.opened.Add(-time.Second)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.thawAll(t.Context()); err != nil || !f.noted() {
			t.Errorf("%v, noted %t", err, f.noted())
		}
	}
	if err := b.note(frozenNote{VolumeID: "id", Volume: "disk", Since: b.opened.Add(-orphanLimit)}); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(b.thawAll(t.Context()), b.thawAll(t.Context()))
	if want := slices.Repeat([]string{"thaw, noted true"}, 3); err != nil || f.noted() || !slices.Equal(f.calls, want) {
		t.Errorf("%v, noted %t, %q", err, f.noted(), f.calls)
	}
}

// TestHowItEnded: what went wrong around an instant decides whether it counts, and whether
// there is something to be thawed later.
func TestHowItEnded(t *testing.T) {
	broken := errors.New("broken")
	for name, x := range map[string]struct {
		called  bool // the instant
		instant error
		err     error // of quiesce.Around, besides
		want    any
		left    bool
	}{
		"well":                {true, nil, nil, nil, false},
		"not frozen":          {false, nil, broken, &notFrozenError{}, false},
		"untouched":           {false, nil, quiesce.ErrUntouched, &notFrozenError{}, false},
		"not frozen, nor not": {false, nil, errors.Join(broken, quiesce.ErrFrozen), &notFrozenError{}, true},
		"no snapshot":         {true, broken, nil, broken, false},
		"nor thawed":          {true, broken, quiesce.ErrFrozen, broken, true},
		"not thawed":          {true, nil, quiesce.ErrFrozen, &notThawedError{}, true},
		"too late":            {true, nil, quiesce.ErrLimit, quiesce.ErrLimit, false},
		"too late for good":   {true, nil, errors.Join(quiesce.ErrLimit, quiesce.ErrFrozen), quiesce.ErrLimit, true},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := testIcebox(t)
			b.around = func(ctx context.Context, _ quiesce.Hook, _ time.Duration, instant func(context.Context) error) error {
				var err error
				if x.called {
					err = instant(ctx)
				}
				return errors.Join(err, x.err)
			}
			err := b.hold(t.Context(), frozenNote{VolumeID: "id", Volume: "disk"}, func(context.Context) error { return x.instant })
			if !isLike(err, x.want) || f.noted() != x.left {
				t.Errorf("%v (%T), noted %t", err, err, f.noted())
			}
			if !x.left {
				return
			}
			f.fail = broken
			herr := b.hold(t.Context(), frozenNote{VolumeID: "id", Volume: "disk"}, func(context.Context) error { return nil })
			if !isLike(herr, &notFrozenError{}) || !errors.Is(b.thawAll(t.Context()), broken) || !f.noted() {
				t.Errorf("while it is frozen: %v", herr)
			}
			f.fail = nil
			if terr := b.thawAll(t.Context()); terr != nil || f.noted() {
				t.Errorf("thawed later: %v, noted %t", terr, f.noted())
			}
		})
	}
}

// isLike reports whether an error is of the type of want, or is it.
func isLike(err error, want any) bool {
	switch w := want.(type) {
	case nil:
		return err == nil
	case *notFrozenError:
		_, ok := errors.AsType[*notFrozenError](err)
		return ok
	case *notThawedError:
		_, ok := errors.AsType[*notThawedError](err)
		return ok
	case error:
		_, refused := errors.AsType[*notFrozenError](err)
		_, left := errors.AsType[*notThawedError](err)
		return errors.Is(err, w) && !refused && !left
	}
	return false
}

// TestDamagedNote: what nobody can read anybody can mend.
func TestDamagedNote(t *testing.T) {
	b, _ := testIcebox(t)
	if err := os.WriteFile(b.file("id"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.thawAll(t.Context()); err == nil || !strings.Contains(err.Error(), "thaw its guest and delete the file") {
		t.Error(err)
	}
}

// stillHook is a program that quiesces: it writes what it is called with to a file, and fails
// when there is another.
type stillHook struct{ program, said, fail string }

func newStillHook(t *testing.T) stillHook {
	t.Helper()
	dir := t.TempDir()
	h := stillHook{filepath.Join(dir, "hook"), filepath.Join(dir, "said"), filepath.Join(dir, "fail")}
	script := fmt.Sprintf("#!/bin/sh\necho \"$1\" >>%q\nif [ \"$1\" = freeze ] && [ -e %q ]; then echo 'the database is down' >&2; exit 1; fi\n", h.said, h.fail)
	if err := os.WriteFile(h.program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

// calls are those since it was asked last.
func (h stillHook) calls(t *testing.T) string {
	t.Helper()
	p, err := os.ReadFile(h.said)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err = gone(os.Remove(h.said)); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(p)), " ")
}

// TestQuiesced: the backup of a volume in use that is quiesced needs no force and is marked,
// also when the catalog is lost; where that fails, it fails, unless it was only to be tried.
func TestQuiesced(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	h := newStillHook(t)
	v, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "disk", Size: 1 << 20, Quiesce: &Quiesce{Command: h.program}})
	if err != nil || QuiesceOf(v).Command != h.program {
		t.Fatalf("%+v, %v", v, err)
	}
	c := r.dial(v.URI) // a guest
	b := r.backup(CreateBackup{Volume: "disk"})
	if calls := h.calls(t); !b.Quiesced || calls != "freeze thaw" {
		t.Errorf("%+v, %q", b, calls)
	}
	l, err := r.agent.CreateQuiescedSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "still"})
	if err != nil || len(l) != 1 || h.calls(t) != "freeze thaw" {
		t.Fatalf("%+v, %v", l, err)
	}
	if b := r.backup(CreateBackup{Volume: "disk", Snapshot: "still"}); !b.Quiesced || h.calls(t) != "" {
		t.Errorf("of a quiesced snapshot: %+v", b)
	}
	if err = os.WriteFile(h.fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"}))
	if j.State != JobFailed || !strings.Contains(j.Error, "volume disk could not be quiesced: ") || !strings.Contains(j.Error, "the database is down") || h.calls(t) != "freeze thaw" {
		t.Errorf("%+v", j)
	}
	if _, err = r.agent.SetQuiesce(ctx, "disk", Quiesce{Command: h.program, Try: true}); err != nil {
		t.Fatal(err)
	}
	if b := r.backup(CreateBackup{Volume: "disk"}); b.Quiesced || !strings.Contains(b.Warning, "as after a power failure") || h.calls(t) != "freeze thaw" {
		t.Errorf("only tried: %+v", b)
	}
	if _, err = r.agent.SetQuiesce(ctx, "disk", Quiesce{}); err != nil {
		t.Fatal(err)
	}
	if _, err = r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"}); !errors.Is(err, ErrBusy) {
		t.Errorf("not quiesced any more: %v", err)
	}
	if err = c.Close(); err != nil {
		t.Error(err)
	}
	r.stopAgent()
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err = gone(os.Remove(filepath.Join(r.dir, "agent", name))); err != nil {
			t.Fatal(err)
		}
	}
	r.startAgent()
	all, err := r.agent.Backups(ctx)
	if err != nil || len(all) != 3 || !all[0].Quiesced || !all[1].Quiesced || all[2].Quiesced || !strings.Contains(all[2].Warning, "power failure") {
		t.Errorf("from the repository: %+v, %v", all, err)
	}
}

// TestThawedFirst: an agent that starts thaws what the last one left frozen.
func TestThawedFirst(t *testing.T) {
	r := testRig(t)
	h := newStillHook(t)
	v := r.volume("disk", 1<<20)
	r.stopAgent()
	b, err := openIcebox(filepath.Join(r.dir, "agent", "frozen"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err = b.note(frozenNote{VolumeID: v.ID, Volume: "disk", Quiesce: Quiesce{Command: h.program}, Since: time.Now().Add(-orphanLimit)}); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	if calls := h.calls(t); calls != "thaw" {
		t.Errorf("calls %q", calls)
	}
	if l, err := os.ReadDir(b.dir); err != nil || len(l) > 0 {
		t.Errorf("%v, %v", l, err)
	}
}

// TestQuiesceRefusals: what cannot be meant.
func TestQuiesceRefusals(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	r.volume("disk", 1<<20)
	dir := r.folder()
	rawDisk(t, filepath.Join(dir, "disk"), 1<<20)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "there", NBD: nbdkit(t, dir, filepath.Join(dir, "disk"))}); err != nil {
		t.Fatal(err)
	}
	set := func(ref string, q Quiesce) error { return second(r.agent.SetQuiesce(ctx, ref, q)) }
	for name, x := range map[string]struct {
		err  error
		want *Error
		text string
	}{
		"both":        {set("disk", Quiesce{Agent: "/a", Command: "/b"}), ErrInvalid, "name one of them"},
		"relative":    {set("disk", Quiesce{Agent: "a"}), ErrInvalid, "not absolute"},
		"only try":    {set("disk", Quiesce{Try: true}), ErrInvalid, "nothing to be tried"},
		"no volume":   {set("dusk", Quiesce{Agent: "/a"}), ErrNotFound, "dusk"},
		"kind nbd":    {set("there", Quiesce{Agent: "/a"}), ErrInvalid, "of kind nbd cannot be quiesced"},
		"at creation": {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "x", NBD: "nbd://h", Quiesce: &Quiesce{Agent: "/a"}})), ErrInvalid, "cannot be quiesced"},
		"by nothing":  {second(r.agent.CreateQuiescedSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}})), ErrInvalid, "nothing to be quiesced by"},
	} {
		if x.err == nil || !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
}
