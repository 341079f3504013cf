package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// fakeKernel does with the sockets of one device what the kernel's driver does.
type fakeKernel struct {
	t    *testing.T
	dead chan struct{} // one for each connection that has ended

	mu       sync.Mutex
	sockets  []net.Conn // nil: has ended
	attached bool
	cookie   uint64
}

func newFakeKernel(t *testing.T) *fakeKernel {
	t.Helper()
	k := &fakeKernel{t: t, dead: make(chan struct{}, 100)}
	t.Cleanup(k.detach)
	return k
}

// open is an opener.
func (k *fakeKernel) open(bool) (*driver, error) {
	return &driver{conn: &fakeNetlink{fakeKernel: k, closed: make(chan struct{})}, family: 77}, nil
}

type fakeNetlink struct {
	*fakeKernel

	once   sync.Once
	closed chan struct{}
}

func (n *fakeNetlink) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

func (n *fakeNetlink) Receive() ([]genetlink.Message, []netlink.Message, error) {
	select {
	case <-n.dead:
		other := genetlink.Message{Header: genetlink.Header{Command: driverLinkDead}, Data: attribute(attrIndex, uint32(1))}
		ours := genetlink.Message{Header: genetlink.Header{Command: driverLinkDead}, Data: attribute(attrIndex, uint32(4))}
		return []genetlink.Message{other, ours}, nil, nil
	case <-n.closed:
		return nil, nil, os.ErrClosed
	}
}

func (n *fakeNetlink) Execute(m genetlink.Message, _ uint16, _ netlink.HeaderFlags) ([]genetlink.Message, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answer := func(data []byte) ([]genetlink.Message, error) {
		return []genetlink.Message{{Header: m.Header, Data: data}}, nil
	}
	switch m.Header.Command {
	case driverConnect:
		if n.attached {
			return nil, unix.EBUSY
		}
		n.sockets, n.attached = n.take(m.Data), true
		return answer(attribute(attrIndex, uint32(4)))
	case driverReconfigure:
		if !n.attached {
			return nil, unix.EINVAL
		}
		fresh := n.take(m.Data)
		for i, c := range n.sockets {
			if c == nil && len(fresh) > 0 {
				n.sockets[i], fresh = fresh[0], fresh[1:]
			}
		}
		for _, c := range fresh { // nothing was dead
			closeQuietly(c)
		}
		return nil, nil
	case driverStatus:
		connected := uint8(0)
		if n.attached {
			connected = 1
		}
		return answer(attribute(attrDevices, attribute(attrDevice, attribute(attrDeviceIndex, uint32(4)), attribute(attrDeviceConnected, connected))))
	default:
		return nil, unix.EOPNOTSUPP
	}
}

// take makes connections of the descriptors in a message, as the kernel does.
func (k *fakeKernel) take(data []byte) (l []net.Conn) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		k.t.Error(err)
		return nil
	}
	for d.Next() {
		if d.Type() != attrSockets {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(s *netlink.AttributeDecoder) error {
					for s.Next() {
						fd, err := unix.Dup(int(s.Uint32()))
						if err != nil {
							return err
						}
						f := os.NewFile(uintptr(fd), "socket")
						c, err := net.FileConn(f)
						closeQuietly(f)
						if err != nil {
							return err
						}
						l = append(l, c)
					}
					return nil
				})
			}
			return nil
		})
	}
	if d.Err() != nil {
		k.t.Error(d.Err())
	}
	return l
}

// read reads over the i-th connection, and tells of its end.
func (k *fakeKernel) read(i int, off uint64, n uint32) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.sockets[i]
	if c == nil {
		return nil, net.ErrClosed
	}
	k.cookie++
	b := encode(magicRequest, uint16(0), cmdRead, k.cookie, off, n)
	p := make([]byte, simpleReplySize+int(n))
	_, err := c.Write(b)
	if err == nil {
		_, err = io.ReadFull(c, p)
	}
	if err == nil && (binary.BigEndian.Uint32(p) != magicSimple || binary.BigEndian.Uint32(p[4:]) != 0 || binary.BigEndian.Uint64(p[8:]) != k.cookie) {
		err = errors.New("that is not a simple reply to the request")
	}
	if err != nil {
		closeQuietly(c)
		k.sockets[i] = nil
		k.dead <- struct{}{}
		return nil, err
	}
	return p[simpleReplySize:], nil
}

func (k *fakeKernel) detach() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.sockets {
		if c != nil {
			closeQuietly(c)
		}
	}
	k.sockets, k.attached = nil, false
}

// keeping attaches to a server and keeps it.
type keeping struct {
	*fakeKernel
	*restartable
	m      *memory
	d      *KernelDevice
	kept   chan error
	cancel context.CancelFunc
}

func keep(t *testing.T, dead time.Duration) *keeping {
	t.Helper()
	k := &keeping{fakeKernel: newFakeKernel(t), restartable: &restartable{t: t, path: filepath.Join(t.TempDir(), "s")}, m: newMemory(1 << 20), kept: make(chan error, 1)}
	copy(k.m.data, bytes.Repeat([]byte("kernel! "), 1<<17))
	k.start(k.m.export("disk"))
	var err error
	if k.d, err = attachKernel(t.Context(), URI(k.path, "disk"), KernelOptions{Conns: 3, DeadTimeout: dead}, k.open); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k.cancel = cancel
	go func() { k.kept <- k.d.Keep(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := k.d.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// reads reads over all connections until that works.
func (k *keeping) reads() {
	k.restartable.t.Helper()
	for i := range 3 {
		for try := 0; ; try++ {
			p, err := k.read(i, 4096, 8192)
			if err == nil && bytes.Equal(p, k.m.content(4096, 8192)) {
				break
			}
			if try == 2000 {
				k.restartable.t.Fatalf("connection %d: %v", i, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// TestKernelKeep: connections that end are replaced, also when the server was away.
func TestKernelKeep(t *testing.T) {
	k := keep(t, time.Minute)
	if k.d.Path() != "/dev/nbd4" || k.d.Size() != 1<<20 || k.d.ReadOnly() {
		t.Errorf("%s of %d bytes, read-only %v", k.d.Path(), k.d.Size(), k.d.ReadOnly())
	}
	k.reads()
	for range 2 {
		k.stop()
		for i := range 3 {
			if _, err := k.read(i, 0, 512); err == nil {
				t.Fatalf("connection %d lives without a server", i)
			}
		}
		k.start(k.m.export("disk"))
		k.reads()
	}
	k.cancel()
	if err := <-k.kept; err != nil {
		t.Error(err)
	}
	// The device is attached still, to whoever comes next.
	if _, err := attachKernel(t.Context(), URI(k.path, "disk"), KernelOptions{Device: "/dev/nbd4"}, k.open); !errors.Is(err, unix.EBUSY) {
		t.Errorf("attached twice: %v", err)
	}
	k.reads()
}

// TestKernelKeepEnds: what ends the keeping, and with which sentence.
func TestKernelKeepEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		dead time.Duration
		do   func(*keeping)
		want string
	}{
		{"detached", time.Minute, func(k *keeping) { k.detach() }, "the device was detached: /dev/nbd4"},
		{"detached while the server is away", time.Minute, func(k *keeping) {
			k.stop()
			_, _ = k.read(0, 0, 512) // it fails
			k.detach()
		}, "the device was detached: /dev/nbd4"},
		{"away for too long", time.Nanosecond, func(k *keeping) {
			k.stop()
			_, _ = k.read(0, 0, 512) // it fails
		}, "the server has been away for longer than 1ns"},
		{"another export", time.Minute, func(k *keeping) {
			k.stop()
			k.start(newMemory(1 << 19).export("disk"))
			_, _ = k.read(0, 0, 512) // it fails
		}, "the server has another export under that name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := keep(t, c.dead)
			k.reads()
			c.do(k)
			if err := <-k.kept; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

func TestKernelAttachRefused(t *testing.T) {
	path := listen(t, serverOf(t, newMemory(1<<20).export("disk"), newMemory(1000).export("odd")))
	k := newFakeKernel(t)
	none := func(bool) (*driver, error) { return nil, errors.New("no driver") }
	for _, c := range []struct {
		uri, device, want string
		open              opener
	}{
		{URI(path, "disk"), "/dev/sda", "is no device of the kernel's NBD driver", k.open},
		{"http://x", "", "scheme", k.open},
		{URI(path, "none"), "", "no export of that name", k.open},
		{URI(path, "odd"), "", "1000 bytes, which is not a number of blocks of 512", k.open},
		{URI(path+"x", "disk"), "", "no such file", k.open},
		{URI(path, "disk"), "", "no driver", none},
	} {
		if _, err := attachKernel(t.Context(), c.uri, KernelOptions{Device: c.device}, c.open); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.uri, c.device, err, c.want)
		}
	}
	for path, want := range map[string]string{"/dev/nbd5": "/dev/nbd5 is not attached to anything", "/dev/sda": "is no device"} {
		if err := detachKernel(path, false, k.open); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("detach %s: %v, want %s", path, err, want)
		}
	}
}

// TestRelay: a connection that is more than a socket is carried, and ends with either side.
func TestRelay(t *testing.T) {
	for _, serverFirst := range []bool{false, true} {
		var r relays
		ours, theirs := net.Pipe() // has no descriptor
		f, err := r.socketOf(ours)
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() {
			_, err := f.WriteString("request")
			sent <- err
		}()
		p := make([]byte, 7)
		if _, err := io.ReadFull(theirs, p); err != nil || string(p) != "request" {
			t.Fatalf("%q, %v", p, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.Write([]byte("answer!")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f, p); err != nil || string(p) != "answer!" {
			t.Fatalf("%q, %v", p, err)
		}
		if serverFirst {
			closeQuietly(theirs)
			if _, err := f.Read(p); !errors.Is(err, io.EOF) {
				t.Errorf("the server has hung up: %v", err)
			}
		} else {
			closeQuietly(f)
			if _, err := theirs.Read(p); !errors.Is(err, io.EOF) {
				t.Errorf("the kernel has hung up: %v", err)
			}
		}
		r.running.Wait()
		closeQuietly(f)
		closeQuietly(theirs)
	}
}

// TestKernelTLS: the kernel speaks to a server that wants TLS through this program.
func TestKernelTLS(t *testing.T) {
	a, m := tlstest.New(t), newMemory(1<<20)
	copy(m.data, bytes.Repeat([]byte("secret! "), 1<<17))
	s := serverOf(t, m.export("disk"))
	s.o.TLS = a.ServerConfig()
	uri := secured(URI(listen(t, s), "disk"), trusting(a.ClientDir("alice")))
	k := newFakeKernel(t)
	d, err := attachKernel(t.Context(), uri, KernelOptions{Conns: 2}, k.open)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if p, err := k.read(i, 512, 70000); err != nil || !bytes.Equal(p, m.content(512, 70000)) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := k.read(0, 0, 512); err == nil {
		t.Error("a connection is carried when nobody carries it any more")
	}
}
