package nbd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

// flaky passes connections on to a server, and lets of the replies on the one
// numbered i only limit(i) bytes through. count says how many there were.
func flaky(t *testing.T, target string, limit func(i int) int64) (path string, count *atomic.Int64) {
	t.Helper()
	path = t.TempDir() + "/flaky"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	count = new(atomic.Int64)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			n := limit(int(count.Add(1)) - 1)
			wg.Go(func() { passOn(client, target, n) })
		}
	})
	t.Cleanup(func() {
		closeQuietly(l)
		wg.Wait()
	})
	return path, count
}

// passOn passes a connection on until n bytes of replies have gone through, and
// returns how many there were when neither side has the connection any more.
func passOn(client net.Conn, target string, n int64) (total int64) {
	defer closeQuietly(client)
	server, err := net.Dial("unix", target)
	if err != nil {
		return 0
	}
	up := make(chan struct{})
	go func() {
		_, _ = io.Copy(server, client)
		closeQuietly(server)
		close(up)
	}()
	total, _ = io.CopyN(client, server, n)
	closeQuietly(client)
	closeQuietly(server)
	<-up
	return total
}

const never = 1 << 40

// once cuts the first connection only.
func once(n int64) func(int) int64 {
	return func(i int) int64 {
		if i == 0 {
			return n
		}
		return never
	}
}

// Wherever a connection is lost, what was asked is answered, and a flush that
// could promise too much says so.
func TestReconnectAnywhere(t *testing.T) {
	noLeaks(t)
	m := newMemory(64 << 10)
	m.WriteAt(bytes.Repeat([]byte{7}, 600), 300)
	path := listen(t, serverOf(t, m.export("disk")))
	ctx := t.Context()
	o := ClientOptions{Contexts: []string{ContextAllocation, dirtyName}, Reconnect: 20 * time.Second}
	session := func(path string) (doubtful bool) {
		c := dial(t, URI(path, "disk"), o)
		p := make([]byte, 1000)
		if err := c.ReadAt(ctx, p, 0); err != nil || !bytes.Equal(p, m.content(0, 1000)) {
			t.Error("read something else", err)
		}
		if e, err := c.Map(ctx, ContextAllocation, 0, c.Size()); err != nil || blockmap.Total(e) != c.Size() {
			t.Errorf("map %v, %v", e, err)
		}
		if err := errors.Join(c.WriteAt(ctx, p[:10], 300, true), c.Zero(ctx, 4096, 10, true)); err != nil {
			t.Error(err)
		}
		err := c.Flush(ctx)
		if err != nil && !errors.Is(err, ErrUnflushed) {
			t.Error(err)
		}
		if again := c.Flush(ctx); (again == nil) != (err == nil) {
			t.Errorf("%v, then %v", err, again)
		}
		// FUA needs no flush.
		if ferr := errors.Join(c.WriteAt(ctx, p[:10], 300, true), c.Close()); ferr != nil {
			t.Error(ferr)
		}
		return err != nil
	}
	whole := cutterOf(t, path)
	handshake, err := whole.session(never, func() error {
		c, err := Dial(ctx, URI(whole.path, "disk"), o)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	total, _ := whole.session(never, func() error {
		if session(whole.path) {
			t.Error("a flush over a connection that was never lost")
		}
		return nil
	})
	doubts := 0
	for n := handshake + rand.Int64N(3); n < total; n += 3 {
		short, count := flaky(t, path, once(n))
		if session(short) {
			doubts++
		}
		if count.Load() != 2 {
			t.Errorf("cut off at byte %d of %d: %d connections", n, total, count.Load())
		}
	}
	if doubts == 0 || doubts > 32 {
		t.Errorf("%d flushes said that changes may be lost; between the answers to Zero and to Flush are few bytes", doubts)
	}
}

// Blocks that are written once, with FUA, over connections that break all the
// time, are all there.
func TestReconnectStorm(t *testing.T) {
	noLeaks(t)
	const size, block = 4 << 20, 16 << 10
	for _, conns := range []int{1, 3} {
		seed := rand.Uint64()
		t.Logf("seed %d, %d connections", seed, conns)
		d := newFileDisk(t, size, true)
		rng, mu := rand.New(rand.NewPCG(seed, 0)), sync.Mutex{}
		path, count := flaky(t, listen(t, serverOf(t, d.export("disk"))), func(i int) int64 {
			mu.Lock()
			defer mu.Unlock()
			if i < conns {
				return never // so that Dial succeeds; the first to be cut is made from the inside
			}
			return rng.Int64N(40 << 10)
		})
		c := dial(t, URI(path, "disk"), ClientOptions{Conns: conns, Reconnect: time.Minute, Contexts: []string{ContextAllocation}})
		ctx := t.Context()
		c.current().all[0].fail(&lostError{"connection lost", io.ErrUnexpectedEOF})
		var wg sync.WaitGroup
		next := make(chan int64)
		for range 4 {
			wg.Go(func() {
				for off := range next {
					want := bytes.Repeat([]byte{byte(off/block) + 1}, block)
					if err := c.WriteAt(ctx, want, off, true); err != nil {
						t.Error(err)
					}
					got := make([]byte, block)
					if err := c.ReadAt(ctx, got, off); err != nil || !bytes.Equal(got, want) {
						t.Errorf("block at %d: %v", off, err)
					}
				}
			})
		}
		for off := int64(0); off < size && count.Load() < 10; off += block {
			next <- off
		}
		close(next)
		wg.Wait()
		if err := c.Flush(ctx); err != nil {
			t.Error(err) // all that was not FUA is nothing
		}
		t.Logf("%d connections", count.Load())
		if count.Load() < 5 {
			t.Errorf("only %d connections were made", count.Load())
		}
	}
}

// restartable is a server at a path that can be stopped and started again, until the test
// ends.
type restartable struct {
	t    *testing.T
	path string
	stop func()
}

func (r *restartable) start(e *Export) {
	r.t.Helper()
	l, err := net.Listen("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.stop = serveOn(r.t, serverOf(r.t, e), l)
}

// After a restart what was answered and not flushed is not called durable, and
// what was asked meanwhile waits for the server.
func TestReconnectRestart(t *testing.T) {
	noLeaks(t)
	m := newMemory(1 << 20)
	r := &restartable{t: t, path: t.TempDir() + "/s"}
	r.start(m.export("disk"))
	c := dial(t, URI(r.path, "disk"), ClientOptions{Conns: 3, Reconnect: 20 * time.Second})
	ctx := t.Context()
	restart := func() {
		t.Helper()
		r.stop()
		done := make(chan error)
		go func() { done <- c.ReadAt(ctx, make([]byte, 512), 0) }()
		select {
		case err := <-done:
			t.Fatalf("no server, yet %v", err)
		case <-time.After(20 * time.Millisecond): // long enough for it to have begun; it passes either way
		}
		r.start(m.export("disk"))
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := c.Conns(); n != 3 {
			t.Errorf("%d connections", n)
		}
	}
	restart()
	if err := errors.Join(c.WriteAt(ctx, []byte("one"), 0, false), c.Flush(ctx)); err != nil {
		t.Error(err)
	}
	restart()
	if err := errors.Join(c.WriteAt(ctx, []byte("two"), 0, true), c.Flush(ctx)); err != nil {
		t.Error(err) // all before was flushed, this is durable itself
	}
	restart()
	if err := errors.Join(c.Flush(ctx), c.WriteAt(ctx, []byte("three"), 0, false)); err != nil {
		t.Error(err)
	}
	restart()
	for range 2 {
		if err := c.Flush(ctx); !errors.Is(err, ErrUnflushed) {
			t.Error(err)
		}
	}
}

// A connection that is lost in the middle of TLS, or of its handshake, is made
// again with TLS.
func TestReconnectTLS(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	m := newMemory(64 << 10)
	m.WriteAt(bytes.Repeat([]byte{7}, 600), 300)
	target, dir := listen(t, withTLS(serverOf(t, m.export("disk")), a.ServerConfig())), a.ClientDir("alice")
	limits := []int64{never, 900, 18, 40, 500, 1500, never} // the first is cut from the inside
	path, count := flaky(t, target, func(i int) int64 { return limits[min(i, len(limits)-1)] })
	c := dial(t, secured(URI(path, "disk"), trusting(dir)), ClientOptions{Reconnect: time.Minute})
	c.current().all[0].fail(&lostError{"connection lost", io.ErrUnexpectedEOF})
	for i := range 10 {
		p := make([]byte, 1000)
		if err := c.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, m.content(0, 1000)) {
			t.Error("read something else", err)
		}
		if err := c.WriteAt(t.Context(), []byte{byte(i)}, int64(i), true); err != nil {
			t.Error(err)
		}
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if _, ok := c.current().all[0].nc.(*tls.Conn); !ok || count.Load() < 4 {
		t.Errorf("TLS %v after %d connections", ok, count.Load())
	}
}
