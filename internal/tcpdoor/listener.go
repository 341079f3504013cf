package tcpdoor

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// deadAfter is how long a peer may be silent, or leave what was sent to it
// unacknowledged, until it counts as dead.
const deadAfter = 2 * time.Minute

// keepAlive asks a silent peer for a sign of life, so that a dead one is noticed
// after deadAfter.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: deadAfter / 2, Interval: deadAfter / 8, Count: 4}

// listener takes connections into a hall.
type listener struct {
	net.Listener
	hall  *hall
	ended func(*conn) // called for one that was ended for another
}

// Accept waits for a connection.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		tune(tc)
	}
	c, ended := l.hall.enter(nc)
	if ended != nil {
		l.ended(ended)
	}
	return c, nil
}

// tune makes dead peers noticed, and small replies leave at once. It fails only
// on a connection that has ended, which the next read tells.
func tune(c *net.TCPConn) {
	_ = c.SetNoDelay(true)
	_ = c.SetKeepAliveConfig(keepAlive)
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
}
