package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// StoreProof is one property of a store that was tried.
type StoreProof struct {
	What string
	Need string // who cannot do without it: "anything", "writing", "pruning"
	Err  error  // nil: it holds
	Took time.Duration
}

// StoreTiming is how long calls of one kind took.
type StoreTiming struct {
	Call        string
	Calls       int
	Median, Max time.Duration
}

// StoreValidation is what became of trying a store.
type StoreValidation struct {
	Repository string // ID of the one that it belongs to; empty: to none
	Store      string // its ID there
	Proofs     []StoreProof
	Timings    []StoreTiming
	WriteRate  float64 // bytes a second, of a large object
	ReadRate   float64
	Left       error // what the trial could not take away again
}

// Fit says what the store is fit for: "everything", "writing" (nobody can prune),
// "nothing".
func (v StoreValidation) Fit() string {
	fit := "everything"
	for _, p := range v.Proofs {
		switch {
		case p.Err == nil:
		case p.Need == needPrune:
			fit = "writing"
		default:
			return "nothing"
		}
	}
	return fit
}

const (
	needAll   = "anything"
	needWrite = "writing"
	needPrune = "pruning"

	trialLarge = 4 << 20 // about a shard of 4+2
	trialCalls = 16
)

// ValidateStore tries what a repository asks of a store, under a name of its own,
// and takes it away again. The store may belong to a repository, which is not
// touched. The error is that of ctx; what fails is in the result.
func ValidateStore(ctx context.Context, s objstore.Store, progress func(CheckProgress)) (StoreValidation, error) {
	if progress == nil {
		progress = func(CheckProgress) {}
	}
	var v StoreValidation
	if met := meetOne(ctx, s); met.object != nil {
		v.Repository, v.Store = met.record.Repository.String(), met.record.Store.String()
	}
	id, err := newIdent()
	if err != nil {
		return v, err
	}
	t := &trial{s: s, dir: probePrefix + id.String() + "-trial/", v: &v}
	steps := []struct {
		what, need string
		do         func(context.Context) error
	}{
		{"an object can be created, read and removed", needAll, t.roundTrip},
		{"a range of an object can be read", needAll, t.ranges},
		{"an object of the largest size that shards have can be kept", needWrite, t.large},
		{"what was written is listed at once, and no more when it was removed", needPrune, t.listing},
		{"an object that exists is not overwritten", needWrite, t.again},
		{"of several that create one name at once exactly one succeeds", needPrune, func(ctx context.Context) error { return probeOnce(ctx, s) }},
		{"removing what is not there succeeds", needPrune, func(ctx context.Context) error { return s.Delete(ctx, t.dir+"none") }},
		{"many small requests are answered", needAll, t.latency},
	}
	for n, step := range steps {
		progress(CheckProgress{step.what, int64(n), int64(len(steps))})
		began := time.Now()
		err := step.do(ctx)
		if ctx.Err() != nil {
			break
		}
		v.Proofs = append(v.Proofs, StoreProof{step.what, step.need, err, time.Since(began)})
		if errors.Is(err, objstore.ErrDown) {
			break // the others would only say so again
		}
	}
	v.Left = t.clean(ctx)
	if err := ctx.Err(); err != nil {
		return v, fmt.Errorf("try store %s: %w", s.URL(), err)
	}
	return v, nil
}

// trial is one validation of a store.
type trial struct {
	s   objstore.Store
	dir string // of the names that it uses
	v   *StoreValidation
}

func (t *trial) roundTrip(ctx context.Context) error {
	name, body := t.dir+"small", []byte("cairn")
	if err := t.s.Put(ctx, name, body); err != nil {
		return err //nolint:wrapcheck // stores name themselves and the object
	}
	if err := t.reads(ctx, name, 0, -1, body); err != nil {
		return err
	}
	if size, err := t.s.Stat(ctx, name); err != nil || size != int64(len(body)) {
		return errors.Join(err, fmt.Errorf("it says that an object of %d bytes has %d", len(body), size))
	}
	if err := t.s.Delete(ctx, name); err != nil {
		return err //nolint:wrapcheck // as above
	}
	if _, err := t.s.Get(ctx, name, 0, -1, nil); !errors.Is(err, objstore.ErrNotExist) {
		return fmt.Errorf("an object that was removed is still there (%v)", err) //nolint:errorlint // it is what it is
	}
	return nil
}

func (t *trial) reads(ctx context.Context, name string, off, n int64, want []byte) error {
	got, err := t.s.Get(ctx, name, off, n, nil)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s: it returns other bytes than were written", t.s.URL())
	}
	return err //nolint:wrapcheck // as above
}

func (t *trial) ranges(ctx context.Context) error {
	name, body := t.dir+"range", make([]byte, 100<<10)
	if _, err := rand.Read(body); err != nil {
		return fmt.Errorf("make bytes: %w", err)
	}
	if err := t.s.Put(ctx, name, body); err != nil {
		return err //nolint:wrapcheck // as above
	}
	for _, r := range [][2]int64{{0, 1}, {4096, 8192}, {int64(len(body)) - 1, 1}} {
		if err := t.reads(ctx, name, r[0], r[1], body[r[0]:r[0]+r[1]]); err != nil {
			return err
		}
	}
	if _, err := t.s.Get(ctx, name, int64(len(body))-1, 2, nil); !errors.Is(err, objstore.ErrRange) {
		return fmt.Errorf("a range beyond the end is not refused (%v)", err) //nolint:errorlint // as above
	}
	return nil
}

func (t *trial) large(ctx context.Context) error {
	name, body := t.dir+"large", make([]byte, trialLarge)
	if _, err := rand.Read(body); err != nil {
		return fmt.Errorf("make bytes: %w", err)
	}
	began := time.Now()
	if err := t.s.Put(ctx, name, body); err != nil {
		return err //nolint:wrapcheck // as above
	}
	written := time.Now()
	if err := t.reads(ctx, name, 0, -1, body); err != nil {
		return err
	}
	t.v.WriteRate = float64(len(body)) / written.Sub(began).Seconds()
	t.v.ReadRate = float64(len(body)) / time.Since(written).Seconds()
	return nil
}

func (t *trial) listing(ctx context.Context) error {
	var names []string
	for n := range 3 {
		name := fmt.Sprintf("%slist/%d", t.dir, n)
		if err := t.s.Put(ctx, name, nil); err != nil {
			return err //nolint:wrapcheck // as above
		}
		names = append(names, name)
	}
	listed := func(want []string) error {
		var got []string
		err := t.s.List(ctx, t.dir+"list/", func(i objstore.Info) error { got = append(got, i.Name); return nil })
		slices.Sort(got)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%s: of %d objects it lists %d", t.s.URL(), len(want), len(got))
		}
		return err //nolint:wrapcheck // as above
	}
	if err := listed(names); err != nil {
		return err
	}
	if err := t.s.Delete(ctx, names[1]); err != nil {
		return err //nolint:wrapcheck // as above
	}
	return listed([]string{names[0], names[2]})
}

func (t *trial) again(ctx context.Context) error {
	name := t.dir + "once"
	if err := t.s.Put(ctx, name, []byte("first")); err != nil {
		return err //nolint:wrapcheck // as above
	}
	if err := t.s.Put(ctx, name, []byte("second")); !errors.Is(err, objstore.ErrExist) {
		return fmt.Errorf("%s: it does not refuse to create a name again (%v): it needs conditional writes (S3: If-None-Match)", t.s.URL(), err) //nolint:errorlint // as above
	}
	return t.reads(ctx, name, 0, -1, []byte("first"))
}

func (t *trial) latency(ctx context.Context) error {
	body := make([]byte, 1024)
	for _, call := range []struct {
		name string
		do   func(name string) error
	}{
		{"put 1 KiB", func(name string) error { return t.s.Put(ctx, name, body) }},
		{"get 1 KiB", func(name string) error { _, err := t.s.Get(ctx, name, 0, -1, nil); return err }},
		{"list", func(string) error { return t.s.List(ctx, t.dir+"quick/", func(objstore.Info) error { return nil }) }},
		{"delete", func(name string) error { return t.s.Delete(ctx, name) }},
	} {
		var took []time.Duration
		for n := range trialCalls {
			began := time.Now()
			if err := call.do(fmt.Sprintf("%squick/%d", t.dir, n)); err != nil {
				return err
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.v.Timings = append(t.v.Timings, StoreTiming{call.name, trialCalls, took[len(took)/2], took[len(took)-1]})
	}
	return nil
}

// clean takes everything away that the trial left.
func (t *trial) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var names []string
	err := t.s.List(ctx, t.dir, func(i objstore.Info) error { names = append(names, i.Name); return nil })
	for _, name := range names {
		err = errors.Join(err, t.s.Delete(ctx, name))
	}
	return err //nolint:wrapcheck // as above
}
