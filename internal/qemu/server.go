package qemu

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// listenerName is the listening socket's on its way into qemu.
	listenerName = "cairn-nbd"
	// maxSocket is what the kernel allows for a socket's path.
	maxSocket = 107
	// listening are the flags of a socket that does, in /proc/net/unix.
	listening = "00010000"
)

// socket is where qemu's NBD server listens when we have started it. It is the same
// for all disks of a guest, as a qemu has one such server.
func (d *Disk) socket() string {
	sum := sha256.Sum256([]byte(filepath.Clean(d.Monitor)))
	return filepath.Join(d.Dir, "nbd-"+hex.EncodeToString(sum[:])[:hashLen]+".sock")
}

// serverRuns reports whether our server runs: nobody but the qemu that was given a
// listener in our folder has one there. The kernel is asked and not the server: some
// qemu end when they are told to stop it while somebody is just connecting.
func (d *Disk) serverRuns() (bool, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return false, fmt.Errorf("qemu: look for the socket of the NBD server: %w", err)
	}
	defer f.Close() // it was only read
	socket := d.socket()
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			if err := lines.Err(); err != nil {
				return false, fmt.Errorf("qemu: look for the socket of the NBD server: %w", err)
			}
			return false, nil
		}
		// Number, references, protocol, flags, type, state, inode, path.
		fields := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", 8)
		if len(fields) == 8 && fields[7] == socket && fields[3] == listening {
			return true, nil
		}
	}
}

// startServer has qemu serve NBD on our socket, if it does not yet.
func (d *Disk) startServer(ctx context.Context, m *monitor) error {
	if runs, err := d.serverRuns(); err != nil || runs {
		return err
	}
	socket := d.socket()
	if len(socket) > maxSocket {
		return fmt.Errorf("qemu: %s is too long for a socket's path: use a shorter folder", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of a qemu that ended
		return fmt.Errorf("qemu: %w", err)
	}
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	err = m.call(ctx, "getfd", map[string]any{"fdname": listenerName}, nil, listener)
	if err == nil {
		err = m.call(ctx, "nbd-server-start", map[string]any{
			"addr":            map[string]any{"type": "fd", "data": map[string]any{"str": listenerName}},
			"max-connections": 100,
		}, nil)
	}
	err = errors.Join(err, listener.Close())
	var c *CommandError
	if errors.As(err, &c) && strings.Contains(c.Desc, "already running") {
		return fmt.Errorf("qemu: another program (libvirt?) has qemu's only NBD server in use: try again when it is done (%w: %w)", ErrBusy, err)
	}
	return err
}

// listen makes the socket. qemu gets it open, so that it needs no rights to the folder,
// and no other user gets any to the socket.
func listen(socket string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("qemu: make the socket of the NBD server: %w", err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err = errors.Join(err, os.Chmod(socket, 0o600), l.Close()); err != nil {
		return nil, fmt.Errorf("qemu: make the socket of the NBD server: %w", err)
	}
	return f, nil
}

// stopServer ends the server that we have started, when nothing is exported any more,
// by whomever.
func (d *Disk) stopServer(ctx context.Context, m *monitor, v *view) error {
	runs, err := d.serverRuns()
	switch {
	case err != nil:
		return err
	case !runs:
		return d.removeSocket() // of a guest that ended, or never got it
	case slices.ContainsFunc(v.exports, func(e export) bool { return e.Type == "nbd" }):
		return nil
	}
	if err := m.call(ctx, "nbd-server-stop", nil, nil); err != nil {
		return err
	}
	return d.removeSocket()
}

func (d *Disk) removeSocket() error {
	if err := os.Remove(d.socket()); err != nil && !errors.Is(err, os.ErrNotExist) { // qemu removes it where it can
		return fmt.Errorf("qemu: remove the socket of the NBD server: %w", err)
	}
	return nil
}
