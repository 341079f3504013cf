package nbd

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
)

const memBlock = 4096

// memory is a device in memory that remembers which of its blocks hold data and
// which were changed, and can be told to fail.
type memory struct {
	mu     sync.Mutex
	data   []byte
	used   map[int64]bool // blocks with data
	dirty  map[int64]bool // blocks changed at all
	fail   func(op string, off, n int64) error
	closed atomic.Int32
	opened atomic.Int32
	flush  atomic.Int32
}

func newMemory(size int) *memory {
	return &memory{data: make([]byte, size), used: map[int64]bool{}, dirty: map[int64]bool{}}
}

var _ Device = (*memory)(nil)

func (m *memory) check(op string, off, n int64) error {
	m.mu.Lock()
	fail := m.fail
	m.mu.Unlock()
	if fail != nil {
		return fail(op, off, n)
	}
	return nil
}

// failWith makes fn decide from now on which operations fail.
func (m *memory) failWith(fn func(op string, off, n int64) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = fn
}

// content returns a copy of what the device holds from off.
func (m *memory) content(off, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.data[off : off+n])
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, int64(len(p)), true)
	return copy(m.data[off:], p), nil
}

func (m *memory) isDirty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.dirty) > 0
}

func (m *memory) mark(off, n int64, used bool) {
	for b := off / memBlock; b <= (off+n-1)/memBlock; b++ {
		m.dirty[b] = true
		if used {
			m.used[b] = true
		} else if b*memBlock >= off && (b+1)*memBlock <= off+n {
			delete(m.used, b)
		}
	}
}

func (m *memory) Flush() error {
	m.flush.Add(1)
	return m.check("flush", 0, 0)
}

func (m *memory) Trim(off, n int64) error { return m.clear("trim", off, n) }

func (m *memory) Zero(off, n int64, _ bool) error { return m.clear("zero", off, n) }

func (m *memory) clear(op string, off, n int64) error {
	if err := m.check(op, off, n); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, false)
	return nil
}

func (m *memory) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	if err := m.check("map", off, n); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []blockmap.Extent
	for at := off; at < off+n; {
		b := at / memBlock
		end := min((b+1)*memBlock, int64(len(m.data)))
		var s blockmap.State
		switch {
		case name == ContextAllocation && !m.used[b]:
			s = blockmap.Hole | blockmap.Zero
		case name == dirtyName && m.dirty[b]:
			s = blockmap.Dirty
		}
		out = blockmap.Append(out, blockmap.Extent{Offset: at, Length: end - at, State: s})
		at = end
	}
	return out, nil
}

func (m *memory) Close() error {
	m.closed.Add(1)
	return nil
}

const dirtyName = ContextDirtyBitmap + "start"

func (m *memory) export(name string) *Export {
	return &Export{
		Name: name, Description: "test " + name, MultiConn: true,
		Contexts: func() []string { return []string{ContextAllocation, dirtyName} },
		Size:     m.Size,
		Open: func(context.Context, Peer) (Device, error) {
			m.opened.Add(1)
			return m, nil
		},
	}
}

// serverOf returns a server of some exports; the first is also the default one.
func serverOf(tb testing.TB, exports ...*Export) *Server {
	tb.Helper()
	return NewServer(ServerOptions{
		Lookup: func(name string, _ Peer) (*Export, bool) {
			for i, e := range exports {
				if e.Name == name || name == "" && i == 0 {
					return e, true
				}
			}
			return nil, false
		},
		List: func(Peer) []*Export { return exports },
	})
}
