package catalog

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialSlow  = 500 * time.Millisecond // a failure that took longer is one that others need not wait for again
	dialAgain = time.Second
)

// dialer connects to a server that may go away without a word. The pool opens its
// connections one after the other: of many who wait for one, while the server is out of
// reach, the last would wait for as many timeouts. Who comes within a second of
// a failure that took long gets the same.
type dialer struct {
	connect func(ctx context.Context, network, addr string) (net.Conn, error)

	mu     sync.Mutex
	failed map[string]failure // by address
}

type failure struct {
	err   error
	until time.Time
}

func newDialer(timeout time.Duration) *dialer {
	d := net.Dialer{Timeout: timeout, Control: noticeSilence, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: pgSilence / 4, Interval: pgSilence / 4, Count: 3,
	}}
	return &dialer{connect: d.DialContext, failed: map[string]failure{}}
}

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	begun := time.Now()
	if err := d.known(addr, begun); err != nil {
		return nil, err
	}
	c, err := d.connect(ctx, network, addr)
	if now := time.Now(); err != nil && now.Sub(begun) > dialSlow && !errors.Is(ctx.Err(), context.Canceled) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.failed[addr] = failure{err, now.Add(dialAgain)}
	}
	return c, err
}

// known is how connecting to an address has just failed, nil if it has not.
func (d *dialer) known(addr string, now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, ok := d.failed[addr]
	if ok && now.Before(f.until) {
		return f.err
	}
	delete(d.failed, addr)
	return nil
}

// noticeSilence has the kernel give a connection up when nothing that is sent on it is
// acknowledged.
func noticeSilence(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(pgSilence.Milliseconds()))
	})
	return errors.Join(cerr, err)
}
