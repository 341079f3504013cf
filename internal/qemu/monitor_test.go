package qemu

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestQueueFull: a monitor whose queue is full is busy, and not away, also when the time
// ends while the kernel has the connection wait.
func TestQueueFull(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd) // nothing was written
	if err = errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 3 { // who waits already
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if c, derr := new(net.Dialer).DialContext(ctx, "unix", socket); derr == nil {
			defer c.Close() // as above
		}
		cancel()
	}
	d := &Disk{Monitor: socket, Node: "x", Tag: "t", Dir: t.TempDir(), patience: 50 * time.Millisecond}
	for range 10 {
		if _, err = d.Info(t.Context()); !errors.Is(err, ErrBusy) || errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
	}
	d.dial = func(context.Context, string) (wire, error) {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: context.DeadlineExceeded}
	}
	if _, err = d.Info(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
}
