package nbd

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipe carries bytes between a file and a socket without a copy through the
// program. It belongs to one connection's loop, and is empty between requests.
type pipe struct {
	r, w int
	size int // bytes that fit if they begin with a page
}

// openPipe returns the connection's pipe.
func (t *transmission) openPipe() (*pipe, error) {
	if t.pipe != nil {
		return t.pipe, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("nbd: pipe: %w", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	p.size = 16 * pageSize // what every pipe has
	for size := pipeSize; size > 64<<10; size /= 2 {
		if got, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, size); err == nil {
			p.size = got
			break
		}
	}
	t.pipe = p
	return p, nil
}

// pipeSize is what is asked for. Tests change it.
var pipeSize = 2 * maxPiece

var pageSize = unix.Getpagesize()

// room returns how many bytes of a file from off on fit: each page of it takes one
// place, however little of it is wanted.
func (p *pipe) room(off uint64) int { return p.size - int(off%uint64(pageSize)) } //nolint:gosec // a page is small

// dropPipe discards the pipe with whatever is in it.
func (t *transmission) dropPipe() error {
	err := t.pipe.close()
	t.pipe = nil
	return err
}

func (p *pipe) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(unix.Close(p.r), unix.Close(p.w))
}

// fromFile puts n bytes of the file into the pipe. It returns how many are
// there; fewer come without an error when the pipe is full.
func (p *pipe) fromFile(fd int, off int64, n int) (int, error) {
	done := 0
	for done < n {
		m, err := unix.Splice(fd, &off, p.w, nil, n-done, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && done > 0:
			return done, nil
		case err != nil:
			return done, fmt.Errorf("nbd: splice from file: %w", err)
		case m == 0:
			return done, io.ErrUnexpectedEOF
		default:
			done += int(m)
		}
	}
	return done, nil
}

// toFile writes the n bytes that are in the pipe to the file.
func (p *pipe) toFile(fd int, off int64, n int) error {
	for n > 0 {
		m, err := unix.Splice(p.r, nil, fd, &off, n, unix.SPLICE_F_MOVE)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("nbd: splice to file: %w", err)
		case m == 0:
			return io.ErrShortWrite
		default:
			n -= int(m)
		}
	}
	return nil
}

// enough is how much of a payload is worth being written before the rest has come: the
// client can go on sending meanwhile.
const enough = folioSize

// fromSocket waits until n more bytes of the socket are in the pipe, or enough and no more
// have come, or it is full, and returns how many came. There has to be room for one.
func (p *pipe) fromSocket(raw syscall.RawConn, l *linger, n int) (int, error) {
	done := 0
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		look := func() (over bool) {
			over, failed = p.take(int(fd), n, &done)
			return over
		}
		return look() || l.wait(look)
	})
	if err == nil {
		err = failed
	}
	return done, midway(err)
}

// take puts what the socket has into the pipe, up to n bytes with the done ones, and
// reports whether that is all or enough.
func (p *pipe) take(socket, n int, done *int) (over bool, err error) {
	for *done < n {
		m, errno := spliceNoWait(socket, p.w, n-*done)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			// Either side may be the reason.
			return *done >= enough || *done > 0 && p.full(), nil
		case errno != 0:
			return true, fmt.Errorf("nbd: splice from socket: %w", errno)
		case m == 0:
			return true, io.ErrUnexpectedEOF
		default:
			*done += m
		}
	}
	return true, nil
}

// drain takes what is in the pipe, all of b.
func (p *pipe) drain(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(p.r, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("nbd: read pipe: %w", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}

// full reports whether nothing more fits into the pipe.
func (p *pipe) full() bool {
	fds := []unix.PollFd{{Fd: int32(p.w), Events: unix.POLLOUT}} //nolint:gosec // descriptors are small
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR { // a signal, as the Go runtime sends them
			return err == nil && n == 0
		}
	}
}

// spliced sends a header and then the n bytes that are in the pipe, after
// whatever has been collected.
func (o *output) spliced(head []byte, p *pipe, n int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	o.buf = append(o.buf, head...)
	b := o.buf
	var failed error
	err := o.raw.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			m, err := sendNoWait(int(fd), b, unix.MSG_MORE)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != 0:
				failed = err
				return true
			default:
				b = b[m:]
			}
		}
		for n > 0 {
			m, err := spliceNoWait(p.r, int(fd), n)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			case err != 0:
				failed = fmt.Errorf("nbd: splice to socket: %w", err)
				return true
			case m == 0:
				failed = io.ErrUnexpectedEOF
				return true
			default:
				n -= m
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	o.buf = o.buf[:0]
	return o.written(err)
}

// peek reads what the page cache holds, and no more. On a file system that cannot
// tell it reads like any other.
func (t *transmission) peek(fd int, p []byte, off int64) int {
	if t.nowait {
		n, errno := readNoWait(fd, p, off)
		if errno == 0 {
			return n
		}
		if errno != unix.EOPNOTSUPP {
			return 0
		}
		t.nowait = false
	}
	n, err := unix.Pread(fd, p, off)
	if err != nil {
		return 0 // whoever reads it properly will meet it again
	}
	return n
}
