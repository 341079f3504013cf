package nbd

import "os"

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

// wholeFolios does the same with folios, as long as there is one, so that few writes make
// the page cache's folios smaller than they should be.
func wholeFolios(off int64, n, rest int) int {
	if part := n - int((off+int64(n))%folioSize); n < rest && part > 0 {
		return part
	}
	return wholeBlocks(off, n, rest)
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
		whole := wholeBlocks
		if held == 0 || !p.full() { // else it came in small pieces, and has no room for a whole folio
			var got int
			if got, err = p.fromSocket(t.raw, &t.linger, min(rest, maxPiece)-held); err != nil {
				return err
			}
			held += got
			whole = wholeFolios
		}
		n := whole(off, held, rest)
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
	return t.writeRange(f, off, n, func(off int64, n int) error { return p.toFile(int(f.Fd()), off, n) })
}
