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
	n := int(r.size())
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
		return t.written(r, t.writeFile(f, t.in.take(n), r.start()), false)
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
	first := off
	err := inFolios(f, off, len(p), func(off int64, n int) error {
		_, err := f.WriteAt(p[off-first:][:n], off)
		return err
	})
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

// tearBlock is what a write is never cut inside of when the server is killed: a block of
// the disks that guests take this for, which write one as a whole.
const tearBlock = 4096

// wholeBlocks returns how many of the n bytes at off that have arrived go to the device
// before the others do: all, if they are the rest of their request, or else those up to
// the last end of a block.
func wholeBlocks(off int64, n, rest int) int {
	if n == rest {
		return n
	}
	return max(0, n-int((off+int64(n))%tearBlock))
}

// blockRest returns how many bytes from off on there are to the end of a block, or of
// the request.
func blockRest(off int64, rest int) int { return min(rest, int(tearBlock-off%tearBlock)) }

// writeSpliced moves a large payload from the socket to the file by way of a
// pipe. A part is with the device only once all of it has arrived, and ends where a
// block does.
func (t *transmission) writeSpliced(r request) error {
	if err := t.out.flush(); err != nil {
		return err
	}
	f, _ := t.file.DataFile()
	off, rest := r.start(), int(r.size())
	var failed error
	for rest > 0 && failed == nil && t.in.buffered() > 0 {
		n := wholeBlocks(off, min(t.in.buffered(), rest), rest)
		if n == 0 {
			n = blockRest(off, rest)
			if err := t.in.fill(n, n); err != nil {
				return midway(err)
			}
		}
		failed = t.writeFile(f, t.in.take(n), off)
		off, rest = off+int64(n), rest-n
	}
	held := 0 // of rest, in the pipe
	for rest > 0 && failed == nil {
		p, err := t.openPipe()
		if err != nil {
			failed = err
			break
		}
		got, err := p.fromSocket(t.raw, min(rest, maxPiece)-held)
		if err != nil {
			return err
		}
		held += got
		n := wholeBlocks(off, held, rest)
		if n > 0 {
			failed = t.writeFromPipe(f, p, off, n)
			held -= n
		} else { // what is in it came in crumbs, and nothing more fits
			n = blockRest(off, rest)
			if failed, err = t.writeCrumbs(f, p, off, held, n); err != nil {
				return err
			}
			held = 0
		}
		off, rest = off+int64(n), rest-n
		if failed != nil {
			if err := t.dropPipe(); err != nil {
				return err
			}
			rest -= held // has come, and went with it
		}
	}
	if err := t.in.discard(int64(rest)); err != nil {
		return err
	}
	t.exact = true
	return t.written(r, failed, false)
}

// writeCrumbs writes n bytes, at most a block, of which the first held are in the pipe
// and the others are to come. err ends the connection; failed is the device's.
func (t *transmission) writeCrumbs(f *os.File, p *pipe, off int64, held, n int) (failed, err error) {
	b, done := takeBuffer(n)
	defer done()
	b = b[:n]
	if err = p.drain(b[:held]); err == nil {
		err = t.in.readFull(b[held:])
	}
	if err != nil {
		return nil, err
	}
	return t.writeFile(f, b, off), nil
}

func (t *transmission) writeFromPipe(f *os.File, p *pipe, off int64, n int) error {
	start := time.Now()
	defer func() { t.took(time.Since(start), n) }()
	if err := t.file.BeginWrite(off, int64(n)); err != nil {
		return err
	}
	err := inFolios(f, off, n, func(off int64, n int) error { return p.toFile(int(f.Fd()), off, n) })
	return t.file.EndWrite(off, int64(n), err)
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
		t.lane.start(g, func() {
			defer done()
			if last, all := w.done(t.writePiece(b, at)); last {
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
	start := time.Now()
	n, err := t.dev.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	t.took(time.Since(start), len(p))
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
