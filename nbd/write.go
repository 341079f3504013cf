package nbd

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// write answers WRITE. Its payload has not been read yet.
func (t *transmission) write(r request) error {
	n := int(r.size())
	inline := t.file != nil && !t.writes.lost()
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
		return t.written(r, t.writeFile(f, t.in.take(n), r.start()), false)
	case inline && t.raw != nil:
		return t.writeSpliced(r)
	default:
		return t.writePieces(r)
	}
}

// writeFile writes p to the file under the device.
func (t *transmission) writeFile(f *os.File, p []byte, off int64) error {
	first := off
	return t.writeRange(f, off, len(p), func(off int64, n int) error {
		_, err := f.WriteAt(p[off-first:][:n], off)
		return err
	})
}

// writeRange has the device's file written to by write, in parts, and notes what that
// waited for.
func (t *transmission) writeRange(f *os.File, off int64, n int, write func(off int64, n int) error) error {
	start := time.Now()
	err := t.file.BeginWrite(off, int64(n))
	began := time.Now()
	if began.Sub(start) > slowBegin+time.Duration(n) {
		t.writes.lose()
	}
	if err != nil {
		return err
	}
	// Deferred ones hold the file's lock for each other, and for the loop.
	crowded := t.deferredWrites.Load() > 0
	err = inFolios(f, off, n, write)
	if !crowded {
		t.writes.took(time.Since(began), n)
	}
	return t.file.EndWrite(off, int64(n), err)
}

// written answers a write that is done; with FUA it has to become durable yet.
func (t *transmission) written(r request, err error, soon bool) error {
	if err == nil {
		t.counters.Writes.Add(1)
		t.counters.WriteBytes.Add(r.size())
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

// piece returns how much of the rest bytes at off is one piece: it ends where a folio does,
// and so where a block does.
func piece(off int64, rest int) int {
	if rest <= maxPiece {
		return rest
	}
	return maxPiece - int(off%folioSize)
}

// writePieces reads a payload in pieces and gives each to the device on a
// goroutine of its own. The last one to come back answers.
func (t *transmission) writePieces(r request) error {
	off, rest := r.start(), int(r.size())
	w := &pieces{left: 1}
	if more := rest - piece(off, rest); more > 0 {
		w.left += (more + maxPiece - 1) / maxPiece
	}
	for rest > 0 {
		n := piece(off, rest)
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
		t.deferredWrites.Add(1)
		t.lane.start(g, func() {
			defer done()
			err := t.writePiece(b, at)
			t.deferredWrites.Add(-1)
			if last, all := w.done(err); last {
				_ = t.written(r, all, true) // output keeps the error, and the loop meets it
			}
		})
		off, rest = off+int64(n), rest-n
	}
	return nil
}

// writePiece gives a part of a payload to the device.
func (t *transmission) writePiece(p []byte, off int64) error {
	if t.file != nil {
		f, _ := t.file.DataFile()
		return t.writeFile(f, p, off)
	}
	n, err := t.dev.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
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
