package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// TestNBDCrowd: a thousand clients of a data plane that leave at any point, over unix and
// over TLS, leave it no descriptor, thread or memory of theirs, and the volume free for the next.
func TestNBDCrowd(t *testing.T) {
	if testing.Short() {
		t.Skip("makes thousands of connections: not with -short")
	}
	t.Parallel()
	b := &toolbox{host: emptyHost(t, cairnBinary(t)), ca: tlstest.New(t), seed: uint64(time.Now().UnixNano())}
	t.Logf("seed %d", b.seed)
	b.doors(b.ca)
	b.startServe(b.settings...)
	disk := b.volume(t, "disk", diskSize)
	c := &crowd{T: t, disk: disk, addr: b.addr(disk), conf: b.ca.ClientConfig("alice"), rng: rand.New(rand.NewPCG(b.seed, 0))}
	c.idle(b)
	c.come(300) // what is made once, and pools
	c.idle(b)
	descriptors, threads, before := b.look(t)
	c.come(1000)
	c.idle(b)
	var d, th, after int
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if d, th, after = b.look(t); d <= descriptors || time.Now().After(end) {
			break
		}
	}
	t.Logf("%d -> %d descriptors, %d -> %d threads, %d -> %d KiB", descriptors, d, threads, th, before, after)
	if d > descriptors || th > threads+20 || after > before+16<<10 {
		t.Errorf("%d descriptors, %d threads, %d KiB; before 1000 connections %d, %d, %d", d, th, after, descriptors, threads, before)
	}
}

// look says how many descriptors and threads the data plane has, and how many KiB of
// memory of its own.
func (b *toolbox) look(t *testing.T) (descriptors, threads, memory int) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", b.serve.cmd.Process.Pid)
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	of := func(key string) int {
		_, rest, _ := strings.Cut(string(status), key+":")
		n, nerr := strconv.Atoi(strings.Fields(rest)[0])
		if nerr != nil {
			t.Fatal(nerr)
		}
		return n
	}
	return len(fds), of("Threads"), of("RssAnon")
}

// crowd are clients of one volume.
type crowd struct {
	*testing.T
	disk *exported
	addr string
	conf *tls.Config
	rng  *rand.Rand
}

// idle waits until nobody uses the volume.
func (c *crowd) idle(b *toolbox) {
	c.Helper()
	if err := poll(c.Context(), 10*time.Millisecond, func() (bool, error) {
		v, err := b.data.Volume(c.Context(), c.disk.name)
		return err == nil && !v.InUse && v.Readers == 0, err
	}); err != nil {
		c.Fatal(err)
	}
}

// come connects n clients, some of them at once.
func (c *crowd) come(n int) {
	c.Helper()
	var wg sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range n {
		cut, take, way := c.rng.IntN(1500), c.rng.Int64N(1<<20), i%2
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := c.visit(way == 1, cut, take); err != nil {
				c.Error(err)
			}
		})
	}
	wg.Wait()
}

// visit is one client that breaks off when it has sent so many bytes and taken so many.
// An error is that it did not get as far as to be a client.
func (c *crowd) visit(secret bool, cut int, take int64) error {
	network, addr := "unix", c.disk.socket
	if secret {
		network, addr = "tcp", c.addr
	}
	nc, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	if err = nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	greeting := make([]byte, 18)
	if _, err = io.ReadFull(nc, greeting); err != nil {
		return fmt.Errorf("no greeting: %w", err)
	}
	var w net.Conn = &cutConn{nc, cut}
	if secret {
		if _, err = w.Write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00")); err != nil {
			return nil // it has left
		}
		if _, err = io.ReadFull(nc, make([]byte, 20)); err != nil {
			return fmt.Errorf("no answer to STARTTLS: %w", err)
		}
		w = tls.Client(w, c.conf)
	} else if _, err = w.Write([]byte("\x00\x00\x00\x03")); err != nil {
		return nil // it has left
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyN(io.Discard, w, take) // until it breaks
	}()
	_, _ = w.Write(visitScript(c.disk.name)) // breaks, or not
	if secret {
		_ = nc.SetReadDeadline(time.Now()) // with replies on their way
	}
	_ = nc.Close()
	<-done
	return nil
}

// cutConn breaks when so many bytes have been written to it.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// visitScript is a session after the flags: GO, and requests of each size.
func visitScript(export string) []byte {
	b := []byte("IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00IHAVEOPT\x00\x00\x00\x07")
	b = binary.BigEndian.AppendUint32(b, uint32(6+len(export)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(append(b, export...), 0, 0)
	request := func(command uint16, off uint64, n uint32) {
		b = binary.BigEndian.AppendUint32(b, 0x25609513)
		b = binary.BigEndian.AppendUint32(b, uint32(command))
		b = binary.BigEndian.AppendUint64(b, off)
		b = binary.BigEndian.AppendUint64(b, off)
		b = binary.BigEndian.AppendUint32(b, n)
	}
	request(0, 0, 8<<20)
	request(1, 0, 512)
	b = append(b, make([]byte, 512)...)
	for i := range uint64(16) {
		request(0, i<<19, 512<<10)
	}
	request(3, 0, 0)
	return b
}
