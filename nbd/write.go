package nbd

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// A request that takes longer than this, and a nanosecond for each byte, has
	// waited for something: a preimage, a log, a disk that cannot keep up.
	slowRequest = 500 * time.Microsecond
	// slowSpell is how many of the following ones are then deferred.
	slowSpell = 64
)

// write answers WRITE. Its payload has not been read yet.
func (t *transmission) write(r request) error {
	n := int(r.length)
	inline := t.file != nil && t.patience.Load() <= 0
	if !inline && t.file != nil {
		t.patience.Add(-1)
	}
	switch {
	case inline && n <= maxBufferedWrite:
		if t.in.buffered() < n {
			if err := t.out.flush(); err != nil {
				return err
			}
			if err := t.in.fill(n, readBuffer); err != nil {
				return midway(err)
			}
		}
		f, _ := t.file.DataFile()
		return t.written(r, t.writeFile(f, t.in.take(n), int64(r.offset)), false) //nolint:gosec // within the device's size
	case inline && t.raw != nil:
		return t.writeSpliced(r)
	default:
		return t.writePieces(r)
	}
}

// writeFile writes p to the file under the device.
func (t *transmission) writeFile(f *os.File, p []byte, off int64) error {
	start := time.Now()
	defer func() { t.took(time.Since(start), len(p)) }()
	if err := t.file.BeginWrite(off, int64(len(p))); err != nil {
		return err
	}
	_, err := f.WriteAt(p, off)
	return t.file.EndWrite(off, int64(len(p)), err)
}

// took notes how long a write of n bytes has kept its goroutine.
func (t *transmission) took(d time.Duration, n int) {
	if d > slowRequest+time.Duration(n) {
		t.patience.Store(slowSpell)
	}
}

// written answers a write that is done; with FUA it has to become durable yet.
func (t *transmission) written(r request, err error, soon bool) error {
	if err == nil {
		t.counters.Writes.Add(1)
		t.counters.WriteBytes.Add(int64(r.length))
		if r.flags&cmdFlagFUA != 0 {
			if !soon {
				return t.spawn(r, func() error { return t.fua(r) })
			}
			err = t.fua(r)
		}
	}
	return t.finish(r, err, soon)
}

// fua makes a change durable if the request asks for that.
func (t *transmission) fua(r request) error {
	if r.flags&cmdFlagFUA == 0 {
		return nil
	}
	return t.flush()
}

func (t *transmission) flush() error {
	if err := t.dev.Flush(); err != nil {
		return err
	}
	t.counters.Flushes.Add(1)
	return nil
}

// writeSpliced moves a large payload from the socket to the file by way of a
// pipe. A part is with the device only once all of it has arrived.
func (t *transmission) writeSpliced(r request) error {
	if err := t.out.flush(); err != nil {
		return err
	}
	f, _ := t.file.DataFile()
	off, rest := int64(r.offset), int(r.length) //nolint:gosec // within the device's size
	var failed error
	if n := min(t.in.buffered(), rest); n > 0 {
		failed = t.writeFile(f, t.in.take(n), off)
		off, rest = off+int64(n), rest-n
	}
	for rest > 0 && failed == nil {
		p, err := t.openPipe()
		if err != nil {
			failed = err
			break
		}
		n, err := p.fromSocket(t.raw, min(rest, maxPiece))
		if err != nil {
			return err
		}
		failed = t.writeFromPipe(f, p, off, n)
		off, rest = off+int64(n), rest-n
		if failed != nil {
			if err := t.dropPipe(); err != nil {
				return err
			}
		}
	}
	if err := t.in.discard(int64(rest)); err != nil {
		return err
	}
	t.exact = true
	return t.written(r, failed, false)
}

func (t *transmission) writeFromPipe(f *os.File, p *pipe, off int64, n int) error {
	start := time.Now()
	defer func() { t.took(time.Since(start), n) }()
	if err := t.file.BeginWrite(off, int64(n)); err != nil {
		return err
	}
	return t.file.EndWrite(off, int64(n), p.toFile(int(f.Fd()), off, n))
}

// writePieces reads a payload in pieces and gives each to the device on a
// goroutine of its own. The last one to come back answers.
func (t *transmission) writePieces(r request) error {
	w := &pieces{left: (int(r.length) + maxPiece - 1) / maxPiece}
	off, rest := int64(r.offset), int(r.length) //nolint:gosec // within the device's size
	for rest > 0 {
		n := min(rest, maxPiece)
		g, ok := t.lane.try(bufferMemory(n))
		if !ok || t.in.buffered() < n {
			if err := t.out.flush(); err != nil {
				if ok {
					t.lane.leave(g)
				}
				return err
			}
		}
		if !ok {
			g = t.lane.enter(bufferMemory(n))
		}
		b, done := takeBuffer(n)
		b = b[:n]
		if err := t.in.readFull(b); err != nil {
			done()
			t.lane.leave(g)
			return err
		}
		at := off
		t.lane.start(g, func() {
			defer done()
			start := time.Now()
			m, err := t.dev.WriteAt(b, at)
			if err == nil && m < len(b) {
				err = io.ErrShortWrite
			}
			t.took(time.Since(start), len(b))
			if last, all := w.done(err); last {
				_ = t.written(r, all, true) // output keeps the error, and the loop meets it
			}
		})
		off, rest = off+int64(n), rest-n
	}
	return nil
}

// pieces joins the outcomes of the parts of a request.
type pieces struct {
	mu   sync.Mutex
	left int
	err  error
}

// done reports whether this was the last piece, and the outcome of all.
func (w *pieces) done(err error) (last bool, all error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left--
	w.err = errors.Join(w.err, err)
	return w.left == 0, w.err
}
