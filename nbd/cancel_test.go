package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// A canceled read leaves its buffer alone, and the connection in order, whether
// the reply had not begun, was half there, or comes later.
func TestCancelRead(t *testing.T) {
	step := make(chan struct{})
	uri := fakeServer(t, func(w *wire) {
		w.welcome()
		w.read(requestSize)
		w.send(magicStructured, uint16(1), chunkOffsetData, uint64(1), uint32(8+4096), uint64(0), bytes.Repeat([]byte{1}, 2048))
		step <- struct{}{}
		<-step
		w.send(bytes.Repeat([]byte{2}, 2048)) // the rest comes when nobody wants it any more
		w.read(requestSize)
		step <- struct{}{}
		<-step
		w.read(requestSize)
		w.send(magicStructured, uint16(1), chunkOffsetData, uint64(3), uint32(8+2), uint64(0), "ok")
		w.send(magicStructured, uint16(1), chunkOffsetHole, uint64(2), uint32(12), uint64(0), uint32(4096))
		w.read(requestSize)
	})
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}})
	canceled := func() []byte {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-step
			cancel()
		}()
		p := bytes.Repeat([]byte{9}, 4096)
		if err := c.ReadAt(ctx, p, 0); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		got := bytes.Clone(p)
		step <- struct{}{}
		return append(got, p...)
	}
	for range 2 {
		// What was there when ReadAt returned is there now, whatever came.
		if p := canceled(); !bytes.Equal(p[:4096], p[4096:]) {
			t.Error("the buffer was written to after ReadAt had returned")
		}
	}
	p := make([]byte, 2)
	if err := c.ReadAt(t.Context(), p, 0); err != nil || string(p) != "ok" {
		t.Fatalf("%q, %v", p, err)
	}
}

// Requests that are canceled at any time disturb no others.
func TestCancelStorm(t *testing.T) {
	const size, block = 4 << 20, 64 << 10
	for conns, network := range map[int]string{1: "unix", 2: "unix", 3: "tls"} {
		d := newFileDisk(t, size, true)
		for off := int64(0); off < size; off += block {
			d.WriteAt(bytes.Repeat([]byte{byte(off / block)}, block), off)
		}
		c := dial(t, serveDevice(t, network, d, d.memory), ClientOptions{Conns: conns, Contexts: []string{ContextAllocation}})
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(g)))
				buf := make([]byte, block)
				for range 200 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(300))*time.Microsecond)
					b := rng.IntN(size / block)
					var err error
					if rng.IntN(4) == 0 {
						err = c.WriteAt(ctx, bytes.Repeat([]byte{byte(b)}, block), int64(b*block), false)
					} else if err = c.ReadAt(ctx, buf, int64(b*block)); err == nil && !bytes.Equal(buf, bytes.Repeat([]byte{byte(b)}, block)) {
						t.Errorf("block %d has something else", b)
					}
					cancel()
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := c.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A request that waits its turn is gone at once when canceled.
func TestCancelBeforeSend(t *testing.T) {
	c := dial(t, URI(listen(t, serverOf(t, newMemory(1<<20).export("disk"))), "disk"), ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.WriteAt(ctx, []byte("x"), 0, false); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.current().all[0].writing <- struct{}{} // somebody is writing
	ctx, cancel = context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Flush(ctx) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-c.current().all[0].writing
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// Close fails what is pending, and whatever comes later.
func TestClose(t *testing.T) {
	noLeaks(t)
	m := newMemory(1 << 20)
	release, reached := make(chan struct{}), make(chan struct{})
	m.failWith(func(op string, _, _ int64) error {
		if op == "flush" {
			close(reached)
			<-release
		}
		return nil
	})
	c, err := Dial(t.Context(), URI(listen(t, serverOf(t, m.export("disk"))), "disk"), ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- c.Flush(t.Context()) }()
	<-reached
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	close(release)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// The client keeps to what the server said about sizes, and says so before it
// sends anything.
func TestClientLimits(t *testing.T) {
	var lengths []uint32
	var mu sync.Mutex
	uri := fakeServer(t, func(w *wire) {
		w.greetOption()
		w.answer(optStructuredReply, repErrUnsup)
		w.readOption()
		w.answer(optGo, repInfo, infoBlockSize, uint32(512), uint32(4096), uint32(1100))
		w.answer(optGo, repInfo, infoExport, uint64(1<<20), flagHasFlags)
		w.answer(optGo, repAck)
		for {
			h := w.read(requestSize)
			n := binary.BigEndian.Uint32(h[24:])
			mu.Lock()
			lengths = append(lengths, n)
			mu.Unlock()
			switch binary.BigEndian.Uint16(h[6:]) {
			case cmdRead:
				w.send(magicSimple, uint32(0), h[8:16], make([]byte, n))
			case cmdWrite:
				w.read(int(n))
				w.send(magicSimple, uint32(0), h[8:16])
			default:
				return
			}
		}
	})
	c := dial(t, uri, ClientOptions{Conns: 4, Contexts: []string{ContextAllocation}})
	if b := c.BlockSizes(); b != (BlockSizes{512, 4096, 1024}) || c.Conns() != 1 || c.CanFlush() || c.CanZero() || c.CanTrim() || len(c.Contexts()) != 0 {
		t.Errorf("%+v, %d connections", b, c.Conns())
	}
	ctx := t.Context()
	for what, err := range map[string]error{
		"odd offset":   c.ReadAt(ctx, make([]byte, 512), 1),
		"odd length":   c.ReadAt(ctx, make([]byte, 513), 0),
		"past the end": c.ReadAt(ctx, make([]byte, 1024), 1<<20-512),
		"negative":     c.ReadAt(ctx, make([]byte, 512), -512),
		"far":          c.Zero(ctx, 1<<62, 1<<62, true),
	} {
		if !errors.Is(err, EINVAL) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"flush": c.Flush(ctx),
		"fua":   c.WriteAt(ctx, make([]byte, 512), 0, true),
		"map":   func() error { _, err := c.Map(ctx, ContextAllocation, 0, 512); return err }(),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(c.ReadAt(ctx, make([]byte, 2560), 0), c.WriteAt(ctx, make([]byte, 1536), 512, false), c.Zero(ctx, 0, 1536, true), c.Trim(ctx, 0, 512)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(lengths) != fmt.Sprint([]uint32{1024, 1024, 512, 1024, 512, 1024, 512}) {
		t.Errorf("the requests had lengths %v", lengths)
	}
}
