package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// quickPair returns the reader and writer of one end of a unix socket, and the other end.
func quickPair(t *testing.T) (*quickReader, *quickWriter, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(l)
	peer, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(peer); closeQuietly(nc) })
	raw := rawConn(nc)
	return newQuickReader(nc, raw, testLinger(new(atomic.Int32), 1)), newQuickWriter(raw), peer
}

func TestQuickConn(t *testing.T) {
	r, w, peer := quickPair(t)
	// More than any socket buffer holds, so that both sides have to wait.
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := w.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d bytes, %v", n, err)
		}
	})
	echo := make(chan error, 1)
	go func() {
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(peer, got); err != nil {
			echo <- err
			return
		}
		_, err := peer.Write(got)
		echo <- errors.Join(err, peer.Close())
	}()
	got, err := io.ReadAll(r)
	wg.Wait()
	if err = errors.Join(err, <-echo); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, other than the %d that were sent", len(got), len(sent))
	}
	if n, err := w.Write(sent[:1]); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a write to a peer that left: %d, %v", n, err)
	}
}

func TestQuickReadEnds(t *testing.T) {
	r, _, _ := quickPair(t)
	if err := r.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %d, %v", n, err)
	}
	closeQuietly(r.Conn)
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
}

func TestReadNoWait(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	if _, err := f.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8)
	n, errno := readNoWait(int(f.Fd()), p, 4)
	if errno == syscall.EOPNOTSUPP {
		t.Skip("the file system of the tests cannot tell what is cached")
	}
	if string(p[:max(n, 0)]) != "456789" || errno != 0 {
		t.Errorf("read %q, %v", p[:max(n, 0)], errno)
	}
	if allocs := testing.AllocsPerRun(100, func() { readNoWait(int(f.Fd()), p, 0) }); allocs != 0 {
		t.Errorf("%g allocations for each read", allocs)
	}
}

func TestPipeRoom(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	if _, err := f.Write(make([]byte, 4*maxPiece)); err != nil {
		t.Fatal(err)
	}
	for _, off := range []uint64{0, 1, 4095, 4096, 4097} {
		var tr transmission
		p, err := tr.openPipe()
		if err != nil {
			t.Fatal(err)
		}
		room := p.room(off)
		if n, err := p.fromFile(int(f.Fd()), int64(off), room); n != room || err != nil {
			t.Errorf("of %d bytes from %d on %d fit, %v", room, off, n, err)
		}
		if err := tr.dropPipe(); err != nil {
			t.Error(err)
		}
	}
}

// A large payload is written while the client still sends: it would wait for room in the
// socket otherwise.
func TestPipeTakesEnough(t *testing.T) {
	r, _, peer := quickPair(t)
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var tr transmission
	p, err := tr.openPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.dropPipe() }()
	if p.size < 2*enough {
		t.Skip("the user of the tests has too many pipes for a large one")
	}
	go func() {
		if _, err := peer.Write(make([]byte, enough)); err != nil {
			t.Error(err)
		}
	}()
	if n, err := p.fromSocket(r.raw, r.linger, maxPiece); n != enough || err != nil {
		t.Errorf("%d of a payload's first %d bytes came, %v", n, enough, err)
	}
}
