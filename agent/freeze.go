package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/jsonfile"
	"github.com/cairnbackup/cairn/internal/quiesce"
	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// thawAtMost bounds a try to thaw what was left frozen, and firstThaw those at an agent's
// start, which is not held up longer.
const (
	thawAtMost = 20 * time.Second
	firstThaw  = 5 * time.Second
	// orphanLimit is how long after its beginning a freeze may still come to its end whose
	// agent was killed: its command goes on without it.
	orphanLimit = 2 * quiesce.DefaultLimit
)

// frozenFormat is that of the notes of what is frozen (FORMAT.md).
var frozenFormat = jsonfile.Format{Name: "cairn-frozen", Version: 1}

// frozenNote says what has to be thawed, whatever becomes of who froze it.
type frozenNote struct {
	VolumeID string    `json:"volume_id"`
	Volume   string    `json:"volume"`
	Quiesce  Quiesce   `json:"quiesce"`
	Since    time.Time `json:"since"`
}

// icebox freezes volumes for an instant. What is frozen is noted durably before, and
// thawed within a limit whatever happens, or by the next process, before all else.
type icebox struct {
	dir    string
	opened time.Time
	log    *slog.Logger
	one    keyed // by volume, held while it is frozen
	hook   func(n frozenNote) quiesce.Hook
	around func(ctx context.Context, h quiesce.Hook, limit time.Duration, f func(context.Context) error) error
}

// openIcebox makes the folder of the notes, when it is not there.
func openIcebox(dir string, log *slog.Logger) (*icebox, error) {
	if err := vfs.MkdirAll(vfs.OS(), dir, 0o700); err != nil {
		return nil, err
	}
	return &icebox{dir: dir, opened: time.Now().UTC(), log: log, hook: frozenNote.hook, around: quiesce.Around}, nil
}

// thawLeft thaws what the last agent left frozen, before anything else. What does not
// answer soon is tried again by keepSweeping.
func (h *hub) thawLeft(ctx context.Context) {
	if err := bounded(ctx, firstThaw, h.icebox.thawAll); err != nil {
		h.o.Logger.LogAttrs(ctx, slog.LevelError, "not thawed yet", slog.Any("error", err))
	}
}

// stillness freezes volumes for the instant of a snapshot, and tells what came of it.
type stillness struct {
	box     *icebox
	volumes []Volume // that have a way to be quiesced
	missed  []string // why some were not, though that was to be tried
	left    []string // why some could not be thawed yet
}

// quiescing is what is done for a snapshot of these volumes; nil where none of them says
// how it is quiesced.
func (h *hub) quiescing(volumes ...Volume) *stillness {
	l := slices.DeleteFunc(slices.Clone(volumes), func(v Volume) bool { return QuiesceOf(v).Empty() })
	if len(l) == 0 {
		return nil
	}
	return &stillness{box: h.icebox, volumes: l}
}

// around is for whoever makes the snapshot; nil if there is nothing to be done.
func (s *stillness) around() source.Still {
	if s == nil {
		return nil
	}
	return func(ctx context.Context, instant func(context.Context) error) error {
		return s.freeze(ctx, s.volumes, instant)
	}
}

// done reports whether all stood still.
func (s *stillness) done() bool { return s != nil && len(s.missed) == 0 }

// warning is what a backup has to say of it.
func (s *stillness) warning() string {
	if s == nil {
		return ""
	}
	return strings.Join(append(slices.Clone(s.missed), s.left...), "; ")
}

func (s *stillness) freeze(ctx context.Context, volumes []Volume, instant func(context.Context) error) error {
	if len(volumes) == 0 {
		return instant(ctx)
	}
	v, q := volumes[0], QuiesceOf(volumes[0])
	next := func(ctx context.Context) error { return s.freeze(ctx, volumes[1:], instant) }
	err := s.box.hold(ctx, frozenNote{VolumeID: v.ID, Volume: v.Name, Quiesce: q}, next)
	refused, isRefused := errors.AsType[*notFrozenError](err)
	left, isLeft := errors.AsType[*notThawedError](err)
	switch {
	case isRefused && q.Try && ctx.Err() == nil:
		s.missed = append(s.missed, fmt.Sprintf("volume %s was not quiesced, so that the backup is as after a power failure of its guest: %v", v.Name, refused.cause))
		return next(ctx)
	case isRefused:
		return refuse(CodeConflict, "volume %s could not be quiesced: %v: mend that, or have it only tried (cairn volume quiesce --try)", v.Name, refused.cause)
	case isLeft:
		s.left = append(s.left, left.Error())
		return nil
	}
	return err
}

// notFrozenError is why a volume does not stand still.
type notFrozenError struct{ cause error }

func (e *notFrozenError) Error() string { return e.cause.Error() }

// notThawedError says that a volume stands still longer than it should, though all else went
// well.
type notThawedError struct {
	volume string
	cause  error
}

func (e *notThawedError) Error() string {
	return fmt.Sprintf("volume %s could not be thawed yet, which is tried again and again: %v", e.volume, e.cause)
}

// hold calls f while a volume is frozen, and not if it cannot be ([notFrozenError]), also
// as it is frozen still. [notThawedError]: all else went well.
func (b *icebox) hold(ctx context.Context, n frozenNote, f func(context.Context) error) error {
	unlock, err := b.one.lock(ctx, n.VolumeID)
	if err != nil {
		return err
	}
	defer unlock()
	n.Since = time.Now().UTC()
	if err = errors.Join(b.thawNoted(ctx, n.VolumeID), b.note(n)); err != nil {
		return &notFrozenError{err}
	}
	called := false
	var ferr error
	err = b.around(ctx, b.hook(n), quiesce.DefaultLimit, func(ctx context.Context) error {
		called = true
		ferr = f(ctx)
		return ferr
	})
	left := errors.Is(err, quiesce.ErrFrozen)
	if !left {
		err = errors.Join(err, b.forget(n))
	} else {
		b.log.LogAttrs(ctx, slog.LevelError, "a volume stands still that should not: it is tried again and again", slog.String("volume", n.Volume), slog.Any("error", err))
	}
	switch {
	case !called && err != nil:
		return &notFrozenError{err}
	case ferr == nil && left && !errors.Is(err, quiesce.ErrLimit) && ctx.Err() == nil:
		return &notThawedError{n.Volume, err}
	}
	return err
}

// bounded bounds a call.
func bounded(ctx context.Context, most time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return f(ctx)
}

func (b *icebox) file(volumeID string) string { return filepath.Join(b.dir, volumeID+".json") }

func (b *icebox) note(n frozenNote) error {
	if err := frozenFormat.Write(vfs.OS(), b.file(n.VolumeID), n); err != nil {
		return fmt.Errorf("note that it will be frozen: %w", err)
	}
	return nil
}

func (b *icebox) forget(n frozenNote) error {
	fsys := vfs.OS()
	if err := gone(fsys.Remove(b.file(n.VolumeID))); err != nil {
		return fmt.Errorf("forget that volume %s was frozen: %w", n.Volume, err)
	}
	return fsys.SyncDir(b.dir)
}

// thawAll thaws what notes say, all at the same time: an earlier process froze it and was
// killed, or it could not be thawed at its time.
func (b *icebox) thawAll(ctx context.Context) error {
	fsys := vfs.OS()
	l, err := fsys.ReadDir(b.dir)
	if err != nil {
		return fmt.Errorf("look for what is frozen: %w", err)
	}
	errs := make([]error, len(l))
	var all sync.WaitGroup
	for i, e := range l {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue // half-written: nothing was frozen
		}
		all.Go(func() { errs[i] = b.thawOne(ctx, id) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (b *icebox) thawOne(ctx context.Context, id string) error {
	unlock, err := b.one.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return b.thawNoted(ctx, id)
}

// thawNoted thaws a volume if it is noted that it is frozen. What an earlier process noted
// stays noted for a while, and so is thawed again.
func (b *icebox) thawNoted(ctx context.Context, id string) error {
	var n frozenNote
	err := frozenFormat.Read(vfs.OS(), b.file(id), &n)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("volume %s was frozen, and how is not known: thaw its guest and delete the file: %w", id, err)
	}
	if err = bounded(ctx, thawAtMost, b.hook(n).Thaw); err != nil {
		return fmt.Errorf("volume %s is frozen since %s: %w", n.Volume, n.Since.Format(time.RFC3339), err)
	}
	if n.Since.Before(b.opened) && time.Since(n.Since) < orphanLimit {
		return nil
	}
	return b.forget(n)
}

// hook is what freezes and thaws the volume.
func (n frozenNote) hook() quiesce.Hook {
	if n.Quiesce.Agent != "" {
		return quiesce.GuestAgent{Socket: n.Quiesce.Agent}
	}
	return quiesce.Command{Path: n.Quiesce.Command, Volume: n.Volume}
}
