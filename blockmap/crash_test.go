package blockmap

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

var crashSeeds = flag.Int("crash.seeds", 6, "random histories in the power-loss tests")

// history is a random sequence of operations on a tracker, applied to a model
// when they were acknowledged. What was under way when the power failed is in
// doubted, the model as it would have been.
type history struct {
	rng     *rand.Rand
	tracker *Tracker
	model   *model
	pending *model // nil, or what the operation under way makes of the model
	marked  *Bitmap
	named   int
}

const historySize = 17 << 20 // Two pages of bits.

func newHistory(seed uint64, size int64) *history {
	return &history{rng: source(seed), model: newModel(size, testBlock), marked: NewBitmap(modelBlocks)}
}

// attempt runs an operation whose effect on the model is known.
func (h *history) attempt(effect func(m *model), run func() error) error {
	h.pending = h.model.clone()
	effect(h.pending)
	if err := run(); err != nil {
		return err
	}
	h.model, h.pending = h.pending, nil
	return nil
}

// step runs one random operation.
func (h *history) step() error {
	names := h.model.names()
	switch k := h.rng.IntN(20); {
	case k < 12 && h.model.size > 0:
		off := h.rng.Int64N(h.model.size)
		n := min(h.rng.Int64N(3000), h.model.size-off)
		if k == 0 {
			n = h.model.size - off // A large trim.
		}
		h.touch(off, n)
		return h.attempt(func(m *model) { m.mark(off, n) }, func() error { return h.tracker.Mark(off, n) })
	case k < 15:
		h.named++
		name := fmt.Sprintf("c%d", h.named)
		return h.attempt(func(m *model) { m.add(name) }, func() error { return h.tracker.AddCheckpoint(name) })
	case k == 15 && len(names) > 0:
		h.named++
		at, name := names[h.rng.IntN(len(names))], fmt.Sprintf("c%d", h.named)
		return h.attempt(func(m *model) { m.alias(at, name) }, func() error { return h.tracker.AliasCheckpoint(at, name) })
	case k == 16 && len(names) > 0, k == 17 && len(names) > 4:
		name := names[h.rng.IntN(len(names))]
		return h.attempt(func(m *model) { m.drop(name) }, func() error { return h.tracker.DropCheckpoint(name) })
	case k == 18 && h.rng.IntN(2) == 0:
		return h.tracker.PrepareCheckpoint()
	case k == 18:
		return h.tracker.Flush()
	case k == 19 && h.rng.IntN(3) == 0:
		size := h.rng.Int64N(historySize)
		h.touch(min(size, h.model.size), max(size, h.model.size)-min(size, h.model.size)+1)
		return h.attempt(func(m *model) { m.resize(size) }, func() error { return h.tracker.Resize(size) })
	}
	return nil
}

// touch notes the regions that may be reported as changed after a crash.
func (h *history) touch(off, n int64) {
	const blocks = testRegion / testBlock
	first, last := off/testRegion, (off+max(n, 1)-1)/testRegion
	h.marked.Set(first*blocks, (last-first+1)*blocks)
}

// reopen opens the tracker after a power failure and verifies it: nothing that
// was acknowledged is missing, nothing is in doubt, and what is too much lies in
// regions that were written.
func (h *history) reopen(fsys vfs.FS) error {
	states := []*model{h.model}
	if h.pending != nil {
		states = append(states, h.pending)
	}
	o := testOptions(h.model.size)
	resizing := h.pending != nil && h.pending.size != h.model.size
	if resizing {
		o.Resizing, states = h.pending.size, states[1:]
	}
	t, err := OpenTracker(fsys, "/t", o)
	if err == nil && resizing {
		err = t.Resize(h.pending.size)
	}
	if err != nil {
		return err
	}
	for _, m := range states {
		if !slices.Equal(slices.Sorted(slices.Values(m.names())), checkpointNames(t)) {
			err = fmt.Errorf("checkpoints %v, not %v", checkpointNames(t), m.names())
			continue
		}
		within := func(b, dirty *Bitmap) error {
			return errors.Join(covers(b, dirty), covers(h.marked, b))
		}
		if err = m.verify(t, within); err == nil {
			h.tracker, h.model, h.pending = t, m, nil
			return h.adopt()
		}
	}
	return err
}

// adopt takes over what the tracker has too much.
func (h *history) adopt() error {
	names := h.model.newest().names
	if len(names) == 0 {
		return nil
	}
	b, _, err := h.tracker.Dirty(names[0], "")
	if err != nil {
		return err
	}
	h.model.newest().dirty.Or(b)
	return nil
}

func checkpointNames(t *Tracker) []string {
	var out []string
	for _, c := range t.Checkpoints() {
		out = append(out, c.Name)
	}
	slices.Sort(out)
	return out
}

// crashAt makes the power fail at the n-th operation from now on; the result
// tells what is left, nil if it has not failed yet.
func crashAt(m *vfs.Mem, n int, rng *rand.Rand) func() *vfs.Mem {
	var left *vfs.Mem
	var mu sync.Mutex
	m.OnOp(func(string, string) {
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			left = m.Crash(rng)
		}
	})
	return func() *vfs.Mem {
		mu.Lock()
		defer mu.Unlock()
		return left
	}
}

// run lets a history happen until the power fails, and again after each reopen.
func (h *history) run(fsys *vfs.Mem, failures, at int) error {
	for failure := range failures {
		left := crashAt(fsys, at, h.rng)
		for step := 0; ; step++ {
			err := h.step()
			if left() != nil {
				break
			}
			if err != nil {
				return fmt.Errorf("step %d: %w", step, err)
			}
			if step > 400 {
				return errQuiet
			}
		}
		fsys = left()
		if h.rng.IntN(2) == 0 { // The power fails again, while opening.
			again := crashAt(fsys, 1+h.rng.IntN(12), h.rng)
			if err := h.reopen(fsys); err != nil && again() == nil {
				return fmt.Errorf("failure %d at operation %d: %w", failure, at, err)
			}
			if again() != nil {
				fsys = again()
			} else {
				fsys.OnOp(nil)
				fsys = fsys.Crash(h.rng)
			}
		}
		if err := h.reopen(fsys); err != nil {
			return fmt.Errorf("failure %d at operation %d: %w", failure, at, err)
		}
		at = 1 + h.rng.IntN(60)
	}
	return nil
}

var errQuiet = errors.New("no power failure")

// The power fails at every operation in turn, what was not synced survives at
// random, and no acknowledged mark is ever missing.
func TestPowerLossAtEveryOperation(t *testing.T) {
	for seed := range uint64(*crashSeeds) {
		for at := 1; at <= 150; at++ {
			h := newHistory(seed<<16+uint64(at), historySize)
			m, tr := newMemTracker(t, testOptions(historySize))
			h.tracker = tr
			if err := h.run(m, 2, at); err != nil {
				t.Fatalf("seed %d, operation %d: %v", seed, at, err)
			}
		}
	}
}

// Files fail now and then, and after all of it the power does.
func TestFaultsThenPowerLoss(t *testing.T) {
	for seed := range uint64(*crashSeeds * 20) {
		h := newHistory(seed, historySize)
		m, tr := newMemTracker(t, testOptions(historySize))
		h.tracker = tr
		check(t, tr.AddCheckpoint("first"))
		h.model.add("first")
		faults := source(seed + 1000)
		m.FailOn(func(string, string) error {
			if faults.IntN(15) == 0 {
				return syscall.EIO
			}
			return nil
		})
		var maybe []string // names whose fate an error left open
		for range 60 {
			before := h.model.names()
			if err := h.step(); err != nil && h.pending != nil {
				for _, n := range append(before, h.pending.names()...) {
					if slices.Contains(before, n) != slices.Contains(h.pending.names(), n) {
						maybe = append(maybe, n)
					}
				}
				if h.pending.size != h.model.size {
					break
				}
				h.pending = nil
			}
		}
		m.FailOn(nil)
		o := testOptions(h.model.size)
		after, err := OpenTracker(m.Crash(h.rng), "/t", o)
		check(t, err)
		for _, from := range h.model.names() {
			if slices.Contains(maybe, from) {
				continue
			}
			b, _, err := after.Dirty(from, "")
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := covers(b, h.model.dirty(from, "")); err != nil && h.model.size == h.tracker.size {
				t.Fatalf("seed %d: since %s: %v", seed, from, err)
			}
		}
	}
}

// Many writers at once, and the power fails under them.
func TestConcurrentPowerLoss(t *testing.T) {
	for seed := range uint64(*crashSeeds * 20) {
		m, tr := newMemTracker(t, testOptions(historySize))
		check(t, tr.AddCheckpoint("c0"))
		rng := source(seed)
		left := crashAt(m, 1+rng.IntN(300), source(seed+1))
		var (
			wg    sync.WaitGroup
			gate  sync.RWMutex // What the caller of AddCheckpoint must do.
			mu    sync.Mutex
			model = newModel(historySize, testBlock)
		)
		model.add("c0")
		for w := range uint64(4) {
			wg.Go(func() {
				r := source(seed<<8 + w)
				for left() == nil {
					off := r.Int64N(historySize - 5000)
					gate.RLock()
					err := tr.Mark(off, 5000)
					if err == nil {
						mu.Lock()
						model.mark(off, 5000)
						mu.Unlock()
					}
					gate.RUnlock()
					if err != nil && left() == nil {
						t.Errorf("mark: %v", err)
						return
					}
				}
			})
		}
		wg.Go(func() {
			for i := 1; left() == nil; i++ {
				name := fmt.Sprintf("c%d", i)
				gate.Lock()
				if tr.AddCheckpoint(name) == nil {
					model.add(name)
				}
				gate.Unlock()
				_ = tr.Flush()
				_, _, _ = tr.Dirty("c0", "")
				if i > 2 && tr.DropCheckpoint(fmt.Sprintf("c%d", i-2)) == nil {
					mu.Lock()
					model.drop(fmt.Sprintf("c%d", i-2))
					mu.Unlock()
				}
				tr.Stats()
				tr.Checkpoints()
				tr.Changes()
			}
		})
		wg.Wait()
		after, err := OpenTracker(left(), "/t", testOptions(historySize))
		check(t, err)
		for _, c := range after.Checkpoints() {
			if c.Doubt != "" {
				t.Fatalf("seed %d: %s is in doubt: %s", seed, c.Name, c.Doubt)
			}
		}
		for _, from := range model.names() {
			b, _, err := after.Dirty(from, "")
			if errors.Is(err, ErrCheckpoint) && from != "c0" {
				continue // It was being dropped.
			}
			check(t, err)
			if err := covers(b, model.dirty(from, "")); err != nil {
				t.Fatalf("seed %d: since %s: %v", seed, from, err)
			}
		}
	}
}
