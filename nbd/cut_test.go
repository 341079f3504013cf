package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// noLeaks checks when the test ends that it left no goroutine and no descriptor.
func noLeaks(t *testing.T) {
	t.Helper()
	// The runtime keeps two descriptors from the first socket or pipe on.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	closeQuietly(r)
	closeQuietly(w)
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, fds := count()
	t.Cleanup(func() {
		var g, f int
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
			if g, f = count(); g <= goroutines && f <= fds {
				return
			}
		}
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, before %d and %d\n%s", g, f, goroutines, fds, stacks[:runtime.Stack(stacks, true)])
	})
}

// script is what a client sends in a session that uses everything, with compact or
// extended headers.
func script(bigWrite int, extended bool) []byte {
	option := func(opt uint32, parts ...any) []byte {
		data := encode(parts...)
		return encode("IHAVEOPT", opt, uint32(len(data)), data)
	}
	request := func(flags, command uint16, offset uint64, length uint32, payload ...any) []byte {
		if !extended {
			return encode(magicRequest, flags, command, offset+1, offset, length, encode(payload...))
		}
		if command == cmdWrite {
			flags |= cmdFlagPayloadLen
		}
		return encode(magicExtRequest, flags, command, offset+1, offset, uint64(length), encode(payload...))
	}
	var headers, filtered []byte
	if extended {
		headers = option(optExtendedHeaders)
		filtered = request(cmdFlagPayloadLen, cmdBlockStatus, 0, 12, uint64(1<<20), uint32(1))
		filtered = append(filtered, request(cmdFlagPayloadLen, cmdTrim, 0, 3, "odd")...)
	}
	return encode(
		uint32(3),
		option(optList),
		option(77, "unknown"),
		option(optStructuredReply),
		headers,
		option(optListMetaContext, name("disk"), uint32(1), name("base:")),
		option(optSetMetaContext, name("disk"), uint32(1), name(ContextAllocation)),
		option(optInfo, name("disk"), uint16(1), infoBlockSize),
		option(optGo, name("disk"), uint16(1), infoName),
		request(0, cmdWrite, 0, 100, make([]byte, 100)),
		request(0, cmdRead, 0, 4096),
		request(cmdFlagFUA, cmdWrite, 4096, uint32(bigWrite), make([]byte, bigWrite)),
		request(0, cmdRead, 0, 300<<10),
		request(0, cmdBlockStatus, 0, 1<<20),
		filtered,
		request(0, cmdTrim, 0, 4096),
		request(0, cmdWriteZeroes, 8192, 4096),
		request(0, cmdCache, 0, 4096),
		request(0, cmdFlush, 0, 0),
		request(0, cmdWrite, 1<<30, 8, "past end"),
		request(0, 99, 0, 12),
		request(0, cmdDisc, 0, 0),
	)
}

// A client may vanish anywhere.
func TestCutClient(t *testing.T) {
	noLeaks(t)
	for _, kind := range kinds[:2] {
		t.Run(kind.name, func(t *testing.T) {
			const size = 1 << 20
			d, m := kind.device(t, size)
			e := m.export("disk")
			e.Open = func(context.Context, Peer) (Device, error) {
				m.opened.Add(1)
				return d, nil
			}
			s := serverOf(t, e)
			s.o.MaxConns = 1 << 20 // clients leave faster than the server notices
			path := listen(t, s)
			cut := func(session []byte, n int) {
				w := connect(t, path)
				go func() { _, _ = io.Copy(io.Discard, w.nc) }()
				if _, err := w.nc.Write(session[:n]); err != nil {
					t.Fatalf("cut at %d: %v", n, err)
				}
				closeQuietly(w.nc)
			}
			for _, extended := range []bool{false, true} {
				small := script(500, extended)
				for n := range len(small) + 1 {
					cut(small, n)
				}
				large := script(400<<10, extended) // goes by way of splice
				for n := 1200; n < len(large); n += 9973 {
					cut(large, n)
				}
			}
			w := connect(t, path)
			w.enter("disk", true)
			w.alive()
			w.request(0, cmdDisc, 0, 0, 0)
			w.expectEnd()
			for end := time.Now().Add(10 * time.Second); m.opened.Load() != m.closed.Load(); runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("opened %d times, closed %d times", m.opened.Load(), m.closed.Load())
				}
			}
			// Only now: what a client that is gone had sent may still be written.
			if f, ok := d.(*fileDisk); ok && f.begun.Load() != 0 {
				t.Errorf("%d writes never ended", f.begun.Load())
			}
		})
	}
}

// cutter passes connections on to a server, one at a time, but only so many bytes of
// each one's replies. A session begins with the number of those, and ends with how many
// were passed on.
type cutter struct {
	path   string
	limits chan int64
	passed chan int64
}

// cutterOf returns one that ends with the test.
func cutterOf(t *testing.T, target string) *cutter {
	t.Helper()
	c := &cutter{path: t.TempDir() + "/cut", limits: make(chan int64), passed: make(chan int64)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.path})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range c.limits {
			total := int64(0)
			err := l.SetDeadline(time.Now().Add(20 * time.Second)) // for a session that does not begin
			if client, acceptErr := l.Accept(); acceptErr == nil {
				total = passOn(client, target, n)
			} else {
				err = errors.Join(err, acceptErr)
			}
			if err != nil {
				t.Error(err)
			}
			c.passed <- total
		}
	})
	t.Cleanup(func() {
		close(c.limits)
		wg.Wait()
		closeQuietly(l)
	})
	return c
}

// session returns what f does with at most n bytes from the server, and how many there
// were.
func (c *cutter) session(n int64, f func() error) (total int64, err error) {
	c.limits <- n
	err = f()
	return <-c.passed, err
}

// A server may vanish anywhere, and a client notices with an error.
func TestCutServer(t *testing.T) {
	m := newMemory(64 << 10)
	m.WriteAt(bytes.Repeat([]byte{7}, 600), 300)
	plain := listen(t, serverOf(t, m.export("disk")))
	t.Run("extended headers", func(t *testing.T) {
		cutEverywhere(t, m, plain, func(path string) string { return URI(path, "disk") }, 0)
	})
	t.Run("structured replies", func(t *testing.T) {
		cutEverywhere(t, m, hiding(t, plain, optExtendedHeaders), func(path string) string { return URI(path, "disk") }, 0)
	})
	t.Run("TLS", func(t *testing.T) {
		a := tlstest.New(t)
		dir := a.ClientDir("alice")
		path := listen(t, withTLS(serverOf(t, m.export("disk")), brief(a.ServerConfig())))
		// A goodbye is 24 bytes, and a signature may be some bytes longer than the next.
		cutEverywhere(t, m, path, func(path string) string { return secured(URI(path, "disk"), trusting(dir)) }, 24+8)
	})
}

// brief returns c with a handshake of a few hundred bytes and little work, so that
// there is time to cut it at each of them.
func brief(c *tls.Config) *tls.Config {
	c.CurvePreferences = []tls.CurveID{tls.X25519}
	return c
}

// cutEverywhere cuts a session off at each byte of the server's but the last spare,
// which a client can do without.
func cutEverywhere(t *testing.T, m *memory, path string, uri func(path string) string, spare int64) {
	t.Helper()
	noLeaks(t)
	c := cutterOf(t, path)
	talk := func() error { return cutSession(t, m, uri(c.path)) }
	total, err := c.session(never, talk)
	if err != nil || total < 1000 {
		t.Fatalf("the session has %d bytes and ended in %v", total, err)
	}
	for n := range total - spare {
		if _, err := c.session(n, talk); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut off at byte %d of %d: %v", n, total, err)
		}
	}
}

// cutSession asks for everything that a client can ask for.
func cutSession(t *testing.T, m *memory, uri string) (err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, uri, ClientOptions{Contexts: []string{ContextAllocation, dirtyName}})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := c.Close(); err == nil {
			err = closeErr
		}
	}()
	p := make([]byte, 1000)
	if err := c.ReadAt(ctx, p, 0); err != nil {
		return err
	}
	if !bytes.Equal(p, m.content(0, 1000)) {
		t.Error("read something else")
	}
	if e, err := c.Map(ctx, ContextAllocation, 0, c.Size()); err != nil {
		return err
	} else if len(e) != 2 {
		t.Errorf("map %v", e)
	}
	if err := c.WriteAt(ctx, p[:10], 300, true); err != nil {
		return err
	}
	if err := c.Zero(ctx, 4096, 100, true); err != nil {
		return err
	}
	return c.Flush(ctx)
}
