package source

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/serve"
)

// listAge is how old what a list says of a volume's state may be. Lists are asked for
// every few seconds, and a guest's disk waits for a moment while its qemu answers.
const listAge = 30 * time.Second

// Volumes returns all volumes, ordered by name. Their states may be listAge old.
func (s *Set) Volumes(ctx context.Context) []serve.Volume {
	s.mu.Lock()
	l := make([]*volume, 0, len(s.volumes))
	for _, v := range s.volumes {
		l = append(l, v)
	}
	s.mu.Unlock()
	out := make([]serve.Volume, len(l))
	var all sync.WaitGroup
	for i, v := range l { // each may have to be asked for
		all.Go(func() { out[i] = s.show(ctx, v, listAge) })
	}
	all.Wait()
	slices.SortFunc(out, func(a, b serve.Volume) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// Volume returns the volume with this name or ID.
func (s *Set) Volume(ctx context.Context, ref string) (serve.Volume, error) {
	s.mu.Lock()
	_, v := s.findLocked(ref)
	s.mu.Unlock()
	if v == nil {
		return serve.Volume{}, noVolume(ref)
	}
	return s.show(ctx, v, 0), nil
}

// show describes a volume, by a state that is at most so old.
func (s *Set) show(ctx context.Context, v *volume, age time.Duration) serve.Volume {
	s.mu.Lock()
	r, broken, st, at := v.rec.clone(), v.err, v.seen, v.at
	s.mu.Unlock()
	switch {
	case broken != nil:
		st = state{err: broken}
	case at.IsZero() || time.Since(at) >= age:
		st, at = s.drivers[r.Kind].state(ctx, r), time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.seen.err != nil && st.err == nil && !v.swept {
		s.leftLocked(v)
	}
	v.seen, v.at = st, at
	return s.shownLocked(v, st)
}

// shownLocked is a volume as the data plane would show it.
func (s *Set) shownLocked(v *volume, st state) serve.Volume {
	r := &v.rec
	out := serve.Volume{
		ID: r.ID, Name: r.Name, Path: r.where(), Kind: r.Kind, Size: r.Size, URI: r.URI, Status: serve.StatusAvailable,
		Created: r.Made, Checkpoints: []serve.Checkpoint{}, Snapshots: len(v.snaps), Attributes: shownAttributes(r.Attributes),
	}
	if st.writer != "" {
		out.Status, out.InUse, out.Writers, out.Writer = serve.StatusInUse, true, 1, st.writer
	}
	if st.err != nil {
		out.Status, out.Error = serve.StatusError, st.err.Error()
	}
	for _, c := range r.Checkpoints {
		shown := serve.Checkpoint{Name: c.Name, Created: c.Made, Doubt: st.doubts[c.Name]}
		if dirty, known := st.dirty[c.Name]; known && shown.Doubt == "" {
			shown.DirtyBytes = &dirty
		}
		out.Checkpoints = append(out.Checkpoints, shown)
	}
	return out
}

// shownAttributes are never nothing, so that a caller can send back what it read.
func shownAttributes(a json.RawMessage) json.RawMessage {
	if len(a) == 0 {
		return json.RawMessage("{}")
	}
	return slices.Clone(a)
}

// SetAttributes replaces the attributes of a volume, as [serve.Client.SetAttributes].
func (s *Set) SetAttributes(ctx context.Context, ref string, req serve.SetAttributes) (serve.Volume, error) {
	err := s.work(ctx, ref, func(_ *volume, r *Record) error {
		next, err := attributes.Normal(req.Attributes)
		if err != nil {
			return refuse(serve.CodeInvalid, "volume %s: %v", r.Name, err)
		}
		was, err := attributes.Normal(req.Was)
		if err != nil {
			return refuse(serve.CodeInvalid, "what was read of volume %s before: %v", r.Name, err)
		}
		if len(req.Was) > 0 && !bytes.Equal(was, r.Attributes) {
			return refuse(serve.CodeConflict, "the attributes of volume %s are not those that were read before, because somebody has changed them: read them again", r.Name)
		}
		r.Attributes = next
		return nil
	})
	if err != nil {
		return serve.Volume{}, err
	}
	return s.Volume(ctx, ref)
}

// DropCheckpoint forgets a checkpoint of a volume. Where the volume is served it is dropped
// too, if that answers: a checkpoint of ours that is left there is in nobody's way, and is
// dropped by the next sweep.
func (s *Set) DropCheckpoint(ctx context.Context, ref, name string) error {
	return s.work(ctx, ref, func(v *volume, r *Record) error {
		i := slices.IndexFunc(r.Checkpoints, func(c Checkpoint) bool { return c.Name == name })
		if i < 0 {
			return refuse(serve.CodeNotFound, "volume %s has no checkpoint %q", r.Name, name)
		}
		switch err := s.drivers[r.Kind].forget(ctx, *r, name); {
		case errors.Is(err, ErrAway):
			s.left(v)
		case err != nil:
			return err
		}
		r.Checkpoints = slices.Delete(r.Checkpoints, i, i+1)
		return nil
	})
}

// clone returns a record that shares nothing with r.
func (r *Record) clone() Record {
	c := *r
	c.Checkpoints, c.Attributes = slices.Clone(r.Checkpoints), slices.Clone(r.Attributes)
	return c
}

func (r *Record) same(o Record) bool {
	return r.ID == o.ID && r.Name == o.Name && r.Size == o.Size && bytes.Equal(r.Attributes, o.Attributes) &&
		slices.EqualFunc(r.Checkpoints, o.Checkpoints, func(a, b Checkpoint) bool { return a.Name == b.Name && a.Doubt == b.Doubt && a.Made.Equal(b.Made) })
}

// normal brings what a caller gave into the form in which it is kept, or refuses it.
func (r *Record) normal() error {
	var err error
	if r.Attributes, err = attributes.Normal(r.Attributes); err != nil {
		return refuse(serve.CodeInvalid, "volume %s: %v", r.Name, err)
	}
	if len(r.URI) > maxURI || len(r.Socket) > maxURI || len(r.Node) > maxName {
		return refuse(serve.CodeInvalid, "volume %s: where it is has more than %d bytes", r.Name, maxURI)
	}
	if r.URI != "" {
		if err = CheckURI(r.URI); err != nil {
			return err
		}
	}
	if err = r.check(); err != nil {
		return refuse(serve.CodeInvalid, "volume %s: %v", r.Name, err)
	}
	return nil
}
