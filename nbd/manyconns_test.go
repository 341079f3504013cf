package nbd

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// A thousand clients that leave at any point, of the handshake, of TLS and of what they
// were sent, leave no goroutine, descriptor, device or memory behind.
func TestManyConnections(t *testing.T) {
	for _, secret := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secret), func(t *testing.T) {
			noLeaks(t)
			d := newFileDisk(t, 1<<20, true)
			if _, err := d.WriteAt(make([]byte, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
			e := d.export("disk")
			e.Open = func(context.Context, Peer) (Device, error) {
				d.opened.Add(1)
				return d, nil
			}
			s := serverOf(t, e)
			s.o.MaxConns = 1 << 20 // clients leave faster than the server notices
			var conf *tls.Config
			if secret {
				a := tlstest.New(t)
				s, conf = withTLS(s, a.ServerConfig()), a.ClientConfig("c")
			}
			path := listen(t, s)
			idle := runtime.NumGoroutine()
			gone := func() bool { return d.opened.Load() == d.closed.Load() && runtime.NumGoroutine() <= idle }
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			memory := func() int64 {
				waitFor(t, gone)
				runtime.GC()
				runtime.GC() // of what was pooled
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int64(m.HeapAlloc)
			}
			vanish(t, path, conf, rng, 100) // what is made once, and pools
			before := memory()
			vanish(t, path, conf, rng, 1000)
			if grown := memory() - before; grown > 1000*1000 { // less than 1 KB each
				t.Errorf("%d bytes are left of 1000 connections", grown)
			}
			if d.opened.Load() == 0 || d.begun.Load() != 0 {
				t.Errorf("opened %d times, %d writes never ended", d.opened.Load(), d.begun.Load())
			}
		})
	}
}

// vanish makes connections that break at any byte that the client sends, while what the
// server sends is not taken, taken in part, or taken.
func vanish(t *testing.T, path string, conf *tls.Config, rng *rand.Rand, n int) {
	t.Helper()
	small, large := script(500, true), script(300<<10, false)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range n {
		session := small
		if rng.IntN(8) == 0 {
			session = large
		}
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		w := &wire{t: t, nc: nc} // not connect, by which the test would keep it
		most, some := rng.IntN(len(session)+4000), rng.Int64N(3000)
		if conf != nil {
			w.hello()
			w.option(optStartTLS)
			w.expectReply(optStartTLS, repAck, nil)
			w.nc, session = tls.Client(&leaky{nc, most}, conf), session[4:]
		} else {
			w.nc = &leaky{nc, most}
		}
		switch rng.IntN(3) {
		case 0: // replies are left on their way
			if conf == nil {
				break
			}
			fallthrough
		case 1:
			wg.Go(func() { _, _ = io.CopyN(io.Discard, w.nc, some) })
		default:
			wg.Go(func() { _, _ = io.Copy(io.Discard, w.nc) })
		}
		_, _ = w.nc.Write(session) // breaks, or not
		closeQuietly(nc)
	}
}
