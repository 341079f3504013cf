package nbd

import (
	"io"
	"net"
)

// input reads a connection through a buffer that its user can look into: what
// take returns stays valid until the next call of fill.
type input struct {
	nc   net.Conn
	buf  []byte
	r, w int
}

// resize gives the buffer another size, not below what it holds.
func (in *input) resize(n int) {
	buf := make([]byte, max(n, in.buffered()))
	in.w = copy(buf, in.buf[in.r:in.w])
	in.r, in.buf = 0, buf
}

func (in *input) buffered() int { return in.w - in.r }

// fill reads until n bytes are buffered; n is at most the buffer's size. It
// reads more if more is there, up to most bytes in all. It returns io.EOF only
// when the peer has left without a byte of the n.
func (in *input) fill(n, most int) error {
	if in.buffered() >= n {
		return nil
	}
	if in.r > 0 && len(in.buf)-in.r < n || in.r == in.w {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	for in.buffered() < n {
		m, err := in.nc.Read(in.buf[in.w:min(len(in.buf), in.r+most)])
		in.w += m
		if err != nil && in.buffered() < n {
			if err == io.EOF && in.buffered() > 0 { //nolint:errorlint // io.EOF is never wrapped by a Read
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// take consumes n buffered bytes.
func (in *input) take(n int) []byte {
	b := in.buf[in.r : in.r+n : in.r+n]
	in.r += n
	return b
}

// readFull fills p from the buffer and then straight from the connection.
func (in *input) readFull(p []byte) error {
	k := copy(p, in.buf[in.r:in.w])
	in.r += k
	if _, err := io.ReadFull(in.nc, p[k:]); err != nil {
		return midway(err)
	}
	return nil
}

// discard consumes n bytes that nobody wants.
func (in *input) discard(n int64) error {
	for n > 0 {
		if in.buffered() == 0 {
			if err := in.fill(1, int(min(n, int64(len(in.buf))))); err != nil {
				return midway(err)
			}
		}
		k := min(n, int64(in.buffered()))
		in.r += int(k)
		n -= k
	}
	return nil
}

// midway turns an end of input where there should be more into the error that
// says so.
func midway(err error) error {
	if err == io.EOF { //nolint:errorlint // io.EOF is never wrapped by a Read
		return io.ErrUnexpectedEOF
	}
	return err
}
