package volume

import (
	"sync/atomic"

	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	// tailSize is how much of a temporary log may be in memory only.
	tailSize = 128 << 10
	// tailRecord is the largest record that is collected there.
	tailRecord = 16 << 10
)

// tail is the end of a log that is not in its file yet: many small records are written
// at once. It loses none to a full disk: they stay here until
// they can be written, and what no longer fits is not appended. All but begins is used
// under the log's lock.
type tail struct {
	limit  int          // 0: nothing is collected
	begins atomic.Int64 // where in the log; 0 if it is empty
	buf    []byte
}

// append takes a record at off, where the log ends, or writes it to the file. On an error
// the log ends where it did.
func (t *tail) append(f vfs.File, record []byte, off int64) error {
	small := len(record) <= min(tailRecord, t.limit)
	if len(t.buf) > 0 && (!small || len(t.buf)+len(record) > t.limit) {
		if _, err := f.WriteAt(t.buf, t.begins.Load()); err != nil {
			return err
		}
		t.buf = t.buf[:0]
		t.begins.Store(0)
	}
	if !small {
		_, err := f.WriteAt(record, off)
		return err
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, t.limit)
	}
	if len(t.buf) == 0 {
		t.begins.Store(off)
	}
	t.buf = append(t.buf, record...)
	return nil
}

// has tells whether it may have some of n bytes at off of the log. It needs no lock.
func (t *tail) has(off int64, n int) bool {
	begins := t.begins.Load()
	return begins != 0 && begins < off+int64(n)
}

// readAt fills the part of p that it has, p being at off of the log, and returns how much
// there is before it, which is in the file.
func (t *tail) readAt(p []byte, off int64) int {
	if !t.has(off, len(p)) {
		return len(p)
	}
	begins := t.begins.Load()
	n := int(max(begins-off, 0))
	copy(p[n:], t.buf[off+int64(n)-begins:])
	return n
}
