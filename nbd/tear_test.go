package nbd

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// tornDisk notes where pieces of writes end.
type tornDisk struct {
	*fileDisk
	mu   sync.Mutex
	ends []int64
}

func (d *tornDisk) BeginWrite(off, n int64) error {
	d.mu.Lock()
	d.ends = append(d.ends, off+n)
	d.mu.Unlock()
	return d.fileDisk.BeginWrite(off, n)
}

// A server that is killed in the middle of a large write leaves whole blocks, the old or
// the new: however the payload arrives, each piece of it but the last ends where a block
// of a disk does.
func TestWriteCutAtBlocks(t *testing.T) {
	t.Run("in the loop", func(t *testing.T) { writeCutAtBlocks(t, false) })
	t.Run("through a small pipe", func(t *testing.T) {
		defer func(n int) { pipeSize = n }(pipeSize)
		pipeSize = 0
		writeCutAtBlocks(t, false)
	})
	t.Run("deferred", func(t *testing.T) { writeCutAtBlocks(t, true) })
}

// writeCutAtBlocks has the large writes deferred by TLS, if they shall be.
func writeCutAtBlocks(t *testing.T, deferred bool) {
	t.Helper()
	const size = 4 << 20
	d := &tornDisk{fileDisk: newFileDisk(t, size, true)}
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	s := serverOf(t, e)
	a := tlstest.New(t)
	if deferred {
		s = withTLS(s, a.ServerConfig())
	}
	w := connect(t, listen(t, s))
	w.hello()
	if deferred {
		w = w.startTLS(a.ClientConfig("c"))
	}
	w.enterAfterHello("disk", true)
	rng := rand.New(rand.NewPCG(1, 2))
	shadow := make([]byte, size)
	write := func(off, n int, first, next func() int) {
		t.Helper()
		payload := shadow[off : off+n]
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		d.mu.Lock()
		d.ends = nil
		d.mu.Unlock()
		all := append(encode(magicRequest, uint16(0), cmdWrite, uint64(7), uint64(off), uint32(n)), payload...)
		for chunk := first; len(all) > 0; chunk = next {
			k := min(len(all), max(1, chunk()))
			w.send(all[:k])
			all = all[k:]
		}
		w.expectSimple(7, 0)
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, end := range d.ends {
			if end%4096 != 0 && end != int64(off+n) {
				t.Fatalf("a write of %d bytes at %d was cut at %d, inside a block: %v", n, off, end, d.ends)
			}
		}
		got := make([]byte, size)
		if _, err := d.f.ReadAt(got, 0); err != nil || !bytes.Equal(got, shadow) {
			t.Fatalf("a write of %d bytes at %d: the content differs, %v", n, off, err)
		}
	}
	fixed := func(n int) func() int { return func() int { return n } }
	some := func() int { return 1 + rng.IntN(9000) }
	write(512, 3<<20, fixed(size), fixed(70_001))
	write(512, maxPiece, fixed(size), fixed(size))
	write(1024, maxPiece+512, fixed(size), fixed(size))
	write(folioSize, 3*maxPiece, fixed(size), fixed(size))
	write(folioSize+512, 2*maxPiece, fixed(size), fixed(size))
	if deferred {
		return
	}
	for range 20 {
		n := 130<<10 + rng.IntN(300)*512
		off := rng.IntN((size-n)/512) * 512
		write(off, n, fixed(size), fixed(size)) // at once
		write(off, n, some, some)
		write(off, n, fixed(requestSize+1+rng.IntN(100_000)), some)
		write(off, n, fixed(requestSize), fixed(1357)) // nothing of it behind the header
	}
	// Crumbs come long before a block is whole.
	left := 6000
	write(1536, 200<<10, fixed(requestSize), func() int {
		if left--; left > 0 {
			return 1
		}
		return 50_000
	})
}
