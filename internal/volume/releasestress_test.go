package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestReleaseStress releases a snapshot beside writers, readers of all of it, and the
// snapshots before and behind it, of which some are deleted meanwhile: what is read
// without an error is what it was at the instant, of each of them.
func TestReleaseStress(t *testing.T) {
	stress(t, func(t *testing.T, s *stressed) {
		t.Helper()
		r := rand.New(rand.NewPCG(7, 7))
		for range 12 {
			if err := s.releasing(t, r); err != nil {
				t.Error(err)
				return
			}
		}
	})
}

// releasing takes five snapshots, of which the middle one is read and released.
func (s *stressed) releasing(t *testing.T, r *rand.Rand) error {
	t.Helper()
	const mine = 2
	var all []taken
	for i := range 5 {
		sn, err := s.take(t, i == mine || r.IntN(2) == 0)
		if err != nil {
			return err
		}
		all = append(all, sn)
	}
	doomed := []int{r.IntN(mine), mine + 1 + r.IntN(mine)}
	var (
		wg   sync.WaitGroup
		mark atomic.Int64 // what will have been released soon
		done atomic.Bool
		errs = make(chan error, 16)
	)
	for range 3 {
		seed := r.Uint64()
		wg.Go(func() { errs <- readReleased(all[mine], &mark, &done, seed) })
	}
	wg.Go(func() { errs <- readAndRelease(all[mine], &mark, &done) })
	wg.Go(func() {
		for _, i := range doomed {
			errs <- s.v.DeleteSnapshot(all[i].id)
		}
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	for i, sn := range all {
		if i == doomed[0] || i == doomed[1] {
			continue
		}
		if i != mine {
			if err := compareSectors(sn.Snapshot, sn.want); err != nil {
				return fmt.Errorf("snapshot %d of %d: %w", i, len(all), err)
			}
		}
		if err := s.v.DeleteSnapshot(sn.id); err != nil {
			return err
		}
	}
	return nil
}

// readAndRelease reads a snapshot from its beginning to its end as a backup does, and
// releases what it has read.
func readAndRelease(sn taken, mark *atomic.Int64, done *atomic.Bool) error {
	defer done.Store(true)
	const step = bs + bs/2
	for off := int64(0); off < sn.Size(); off += step {
		n := min(step, sn.Size()-off)
		if err := compareAt(sn.Snapshot, sn.want, off, n); err != nil {
			return err
		}
		mark.Store(off + n)
		if err := sn.Release(off + n); err != nil {
			return err
		}
	}
	return nil
}

// readReleased reads anywhere, also what is just being released, until all is. Only
// what is may be refused.
func readReleased(sn taken, mark *atomic.Int64, done *atomic.Bool, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, seed))
	for !done.Load() {
		// Most reads lie near the watermark.
		off := min(max(0, mark.Load()+r.Int64N(4*bs)-2*bs), sn.Size()-512) / 512 * 512
		n := min((1+r.Int64N(2*bs/512))*512, sn.Size()-off)
		err := compareAt(sn.Snapshot, sn.want, off, n)
		if errors.Is(err, ErrReleased) && off < mark.Load() {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
