package vfs

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Mem is a file system in memory that behaves as badly as POSIX allows.
//
// What was not synced is kept apart from what was, in sectors of 512 bytes,
// sizes and directory entries. [Mem.Crash] shows what a power failure at that
// moment leaves: all that was synced, and of the rest anything. A rename is one
// entry operation within a directory, and two that survive together between
// directories, unless only one of them was synced.
//
// Operations that change something can be watched and made to fail. It is safe
// for concurrent use, and sparse: a hole costs nothing.
type Mem struct {
	mu      sync.Mutex
	root    *memNode
	rng     *rand.Rand // decides what is written back before anybody asks
	now     func() time.Time
	crashed bool
	flights []*flight

	hook  func(op, name string)
	fault func(op, name string) error
}

// flight is an operation between its hook and its completion. The power may
// fail in the middle of it.
type flight struct{ apply func() error }

var _ FS = (*Mem)(nil)

// NewMem returns an empty file system with the directory "/", which is also
// where relative names start.
func NewMem() *Mem {
	m := &Mem{rng: rand.New(rand.NewPCG(1, 2)), now: time.Now} //nolint:gosec // Tests want it repeatable.
	m.root = m.newNode(true, 0o755)
	return m
}

// SetClock replaces the source of modification times.
func (m *Mem) SetClock(now func() time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = now
}

// OnOp makes m call fn before each operation that changes something, in the
// goroutine that asked for it, with no lock held: fn may use m, and may call
// [Mem.Crash], which then finds the operation half done. The operations are
// create, mkdir, remove, rename, link, syncdir, write, truncate, zero and sync;
// name is the file's as it was opened. A nil fn ends it.
func (m *Mem) OnOp(fn func(op, name string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = fn
}

// FailOn makes the operations fail for which fn, called as in [Mem.OnOp] but
// with m locked, returns an error. A failing write may have written a part, and
// a failing sync leaves each sector durable or, though it still reads as
// written, for ever unwritten. A nil fn ends it.
func (m *Mem) FailOn(fn func(op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fn
}

// FailAfter makes the n-th operation from now on (1 is the next) fail with err,
// and only that one. It replaces an earlier FailAfter or FailOn.
func (m *Mem) FailAfter(n int, err error) {
	m.FailOn(func(string, string) error {
		n--
		if n == 0 {
			return err
		}
		return nil
	})
}

// mutate runs an operation that changes something. apply makes the change,
// which is lost or kept at random if the power fails; settle, which may be nil,
// makes it durable; failed, which may be nil, is what an injected fault does.
// All run with m locked.
func (m *Mem) mutate(op, name string, apply func() error, settle, failed func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.crashed {
		return ErrCrashed
	}
	if hook := m.hook; hook != nil {
		f := &flight{apply: apply}
		m.flights = append(m.flights, f)
		m.mu.Unlock()
		hook(op, name)
		m.mu.Lock()
		m.land(f)
		if m.crashed {
			return ErrCrashed
		}
	}
	if m.fault != nil {
		if err := m.fault(op, name); err != nil {
			if failed != nil {
				failed()
			}
			return err
		}
	}
	if err := apply(); err != nil {
		return err
	}
	if settle != nil {
		settle()
	}
	return nil
}

func (m *Mem) land(f *flight) {
	for i, g := range m.flights {
		if g == f {
			m.flights = append(m.flights[:i], m.flights[i+1:]...)
			return
		}
	}
}

// look runs a function that changes nothing, with m locked.
func (m *Mem) look(fn func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.crashed {
		return ErrCrashed
	}
	return fn()
}
