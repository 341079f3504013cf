package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// kernelLink is a connection behind its handshake, to be given to the kernel.
type kernelLink struct {
	session *session
	socket  *os.File // the kernel's own, once it has it
}

// dialKernel makes one connection and negotiates simple replies on it, the only ones
// that the kernel knows. One that cannot be given to the kernel as it is, as it is
// encrypted, is carried by r.
func dialKernel(ctx context.Context, e endpoint, r *relays) (*kernelLink, error) {
	ctx, cancel := context.WithTimeout(ctx, defaultDialTimeout)
	defer cancel()
	var l *kernelLink
	err := withConn(ctx, e, nil, func(g *greeter, socket net.Conn) error {
		s, err := g.chooseSimple(e.export)
		if err != nil {
			return err
		}
		if n := g.in.buffered(); n > 0 {
			return fmt.Errorf("the server sent %d bytes before it was asked for anything", n)
		}
		if raw := rawConn(socket); raw != nil {
			noticeDeath(raw)
		}
		f, err := r.socketOf(g.in.nc)
		l = &kernelLink{session: s, socket: f}
		return err
	})
	if err != nil {
		if l != nil && l.socket != nil {
			closeQuietly(l.socket)
		}
		return nil, err
	}
	return l, nil
}

// chooseSimple negotiates the export and nothing else.
func (g *greeter) chooseSimple(export string) (*session, error) {
	s := newSession()
	if !g.fixed {
		return s, g.exportName(s, export)
	}
	err := g.details(s, optGo, infoRequest{export: export, infos: []uint16{infoBlockSize}})
	if e := refused(err); e != nil && e.rep == repErrUnsup {
		return s, g.exportName(s, export)
	}
	return s, err
}

// relays are connections that are carried for the kernel.
type relays struct {
	running sync.WaitGroup

	mu   sync.Mutex
	ends []io.Closer // one of each, also of those that have ended
}

// socketOf returns a descriptor of the connection's own, which ends it for this
// program; or, of a connection that is more than a socket, one end of a pair at whose
// other end it is carried.
func (r *relays) socketOf(nc net.Conn) (*os.File, error) {
	if c, ok := nc.(interface{ File() (*os.File, error) }); ok {
		f, err := c.File()
		if err != nil {
			return nil, fmt.Errorf("take the socket: %w", err)
		}
		closeQuietly(nc) // the file is the same socket
		return f, nil
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	kernels, ours := os.NewFile(uintptr(fds[0]), "nbd"), os.NewFile(uintptr(fds[1]), "nbd")
	here, err := net.FileConn(ours)
	closeQuietly(ours) // here is another of it
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a pair of sockets: %w", err), kernels.Close())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = append(r.ends, here)
	r.running.Go(func() { relay(here, nc) })
	return kernels, nil
}

// Close ends all of them.
func (r *relays) Close() error {
	r.mu.Lock()
	for _, c := range r.ends {
		closeQuietly(c)
	}
	r.mu.Unlock()
	r.running.Wait()
	return nil
}

// relay carries both directions until either side has ended, and ends the other.
func relay(a, b net.Conn) {
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // whoever has the other end sees that it ends
		closeQuietly(to)
		closeQuietly(from)
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}
