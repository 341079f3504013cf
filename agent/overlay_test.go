package agent

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// bytesImage is an image in memory.
type bytesImage []byte

func (b bytesImage) Size() int64 { return int64(len(b)) }

func (b bytesImage) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, b[off:])
	return nil
}

// Extents calls every third block a hole.
func (b bytesImage) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	var l []blockmap.Extent
	for end := off + n; off < end; {
		s := blockmap.Data
		if b.hole(off) {
			s = blockmap.Hole | blockmap.Zero
		}
		next := min(end, (off/overlayBlock+1)*overlayBlock)
		l = blockmap.Append(l, blockmap.Extent{Offset: off, Length: next - off, State: s})
		off = next
	}
	return l, nil
}

func (b bytesImage) hole(off int64) bool { return off/overlayBlock%3 == 0 }

var overlayID = uuid.MustParse("11111111-2222-3333-4444-555555555555")

// memOverlay opens an overlay in a memory file system.
func memOverlay(fsys vfs.FS, img image, fresh bool) (*overlay, error) {
	flag := os.O_RDWR
	if fresh {
		flag |= os.O_CREATE
	}
	data, err := fsys.OpenFile("/data", flag, 0o600)
	if err != nil {
		return nil, err
	}
	mapf, err := fsys.OpenFile("/map", flag, 0o600)
	if err != nil {
		return nil, err
	}
	o, err := openOverlay(img, overlayID, data, mapf, fresh)
	if err == nil && fresh {
		err = fsys.SyncDir("/")
	}
	return o, err
}

// Random writes and zeroes, flushes, restarts and power failures against a
// shadow copy. After a power failure each sector holds what it held at the
// last flush, or something that was written since.
func TestOverlay(t *testing.T) {
	const sector = 512
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		img := make(bytesImage, rapid.IntRange(1, 10*overlayBlock/sector).Draw(t, "sectors")*sector)
		for i := range img {
			img[i] = byte(i >> 9)
		}
		mem := vfs.NewMem()
		o, err := memOverlay(mem, img, true)
		if err != nil {
			t.Fatal(err)
		}
		shadow := bytes.Clone(img)
		since := map[int64][][]byte{} // contents of a sector that may come back after a power failure
		change := func(off, n int64, f func()) {
			for s := off / sector; s < (off+n+sector-1)/sector; s++ {
				if since[s] == nil {
					since[s] = append(since[s], bytes.Clone(shadow[s*sector:(s+1)*sector]))
				}
			}
			f()
			for s := off / sector; s < (off+n+sector-1)/sector; s++ {
				since[s] = append(since[s], bytes.Clone(shadow[s*sector:(s+1)*sector]))
			}
		}
		span := func() (int64, int64) {
			off := r.Int64N(int64(len(img)))
			n := 1 + r.Int64N(min(int64(len(img))-off, 3*overlayBlock))
			if r.IntN(2) == 0 {
				off -= off % overlayBlock
				n = min(int64(len(img))-off, overlayBlock*(1+r.Int64N(3)))
			}
			return off, n
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0, 1, 2, 3:
				off, n := span()
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				change(off, n, func() { copy(shadow[off:], p) })
				if ierr := o.writeAt(t.Context(), p, off); ierr != nil {
					t.Fatal(ierr)
				}
			case 4:
				off, n := span()
				change(off, n, func() { clear(shadow[off : off+n]) })
				if ierr := o.zero(t.Context(), off, n, r.IntN(2) == 0); ierr != nil {
					t.Fatal(ierr)
				}
			case 5, 6:
				if ierr := o.flush(); ierr != nil {
					t.Fatal(ierr)
				}
				clear(since)
			case 7:
				if ierr := o.close(); ierr != nil {
					t.Fatal(ierr)
				}
				clear(since)
				if o, err = memOverlay(mem, img, false); err != nil {
					t.Fatal(err)
				}
			case 8:
				mem = mem.Crash(r)
				if o, err = memOverlay(mem, img, false); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(img))
				if err := o.readAt(t.Context(), got, 0); err != nil {
					t.Fatal(err)
				}
				for s := range int64(len(img) / sector) {
					now, old := got[s*sector:(s+1)*sector], shadow[s*sector:(s+1)*sector]
					ok := since[s] == nil && bytes.Equal(now, old)
					for _, c := range since[s] {
						ok = ok || bytes.Equal(now, c)
					}
					if !ok {
						t.Fatalf("sector %d holds what was never written there since the last flush", s)
					}
				}
				shadow = got
				clear(since)
			default:
				off, n := span()
				got := make([]byte, n)
				if err := o.readAt(t.Context(), got, off); err != nil || !bytes.Equal(got, shadow[off:off+n]) {
					t.Fatalf("read of %d at %d differs (%v)", n, off, err)
				}
			}
		}
		got := make([]byte, len(img))
		if err := o.readAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, shadow) {
			t.Fatalf("differs at the end (%v)", err)
		}
		for off := int64(0); off < o.size; off += sector {
			has, hole := o.has(off/overlayBlock), img.hole(off)
			n := 1 + r.Int64N(o.size-off)
			alloc, depth := blockmap.Data, blockmap.Top
			if !has {
				depth = blockmap.Beneath
				if hole {
					alloc, depth = blockmap.Hole|blockmap.Zero, blockmap.Nowhere
				}
			}
			l, err := o.extents(t.Context(), off, n)
			if err != nil || len(l) == 0 || l[0].Offset != off || l[0].State != alloc || blockmap.Total(l) != n {
				t.Fatalf("extents of %d at %d, want state %d: %v, %v", n, off, alloc, l, err)
			}
			l, err = o.depths(t.Context(), off, n)
			if err != nil || len(l) == 0 || l[0].Offset != off || l[0].State != depth || blockmap.Total(l) != n {
				t.Fatalf("depths of %d at %d, want state %d: %v, %v", n, off, depth, l, err)
			}
		}
	})
}

// Many writers of parts of the same blocks lose nothing of each other.
func TestOverlayConcurrent(t *testing.T) {
	img := make(bytesImage, 4*overlayBlock)
	for i := range img {
		img[i] = 0xee
	}
	o, err := memOverlay(vfs.NewMem(), img, true)
	if err != nil {
		t.Fatal(err)
	}
	const writers = 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w + 1)}, 1024)
			for off := int64(w) * 1024; off < o.size; off += writers * 2048 {
				if err := o.writeAt(t.Context(), p, off); err != nil {
					t.Error(err)
				}
				if off%(16<<10) == 0 {
					if err := o.flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, o.size)
	if err := o.readAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		want := byte(0xee)
		if k := i / 1024 % (2 * writers); k < writers {
			want = byte(k + 1)
		}
		if b != want {
			t.Fatalf("byte %d is %#x, want %#x", i, b, want)
		}
	}
}

// A failed sync is final: what was not synced may be lost for good.
func TestOverlayFailedSync(t *testing.T) {
	mem := vfs.NewMem()
	o, err := memOverlay(mem, make(bytesImage, overlayBlock), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.writeAt(t.Context(), []byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk on fire")
	mem.FailAfter(1, broken)
	for range 2 {
		if err := o.flush(); !errors.Is(err, broken) {
			t.Fatalf("flush after a failed sync: %v", err)
		}
	}
}

func TestOverlayRefusals(t *testing.T) {
	mem := vfs.NewMem()
	img := make(bytesImage, 3*overlayBlock)
	if _, err := memOverlay(mem, img, true); err != nil {
		t.Fatal(err)
	}
	if _, err := memOverlay(mem, img[:overlayBlock], false); !errors.Is(err, errOverlay) {
		t.Errorf("over an image of another size: %v", err)
	}
	f, err := mem.OpenFile("/map", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	both := bytes.Repeat([]byte{1}, 2*mapPage)
	if _, err := f.WriteAt(both, slotOffset(0, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := memOverlay(mem, img, false); !errors.Is(err, errOverlay) {
		t.Errorf("both slots damaged: %v", err)
	}
}

func FuzzOverlayPage(f *testing.F) {
	g := overlayPage{Number: 3, Generation: 9}
	g.Bits[7] = 0x81
	f.Add(g.encode(), uint32(3))
	f.Add(make([]byte, mapPage), uint32(0))
	f.Add([]byte("short"), uint32(0))
	f.Fuzz(func(t *testing.T, p []byte, number uint32) {
		g, err := decodeOverlayPage(p, number)
		switch {
		case err != nil && !errors.Is(err, errOverlay):
			t.Fatalf("untyped error %v", err)
		case err == nil && g.Generation != 0 && !bytes.Equal(g.encode(), p):
			t.Fatal("encoding differs from what was decoded")
		}
	})
}

func FuzzOverlayHeader(f *testing.F) {
	f.Add(overlayHeader{Backup: overlayID, Size: 1 << 40}.encode())
	f.Add(overlayHeader{}.encode())
	f.Add([]byte("CAIRNOVL"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := decodeOverlayHeader(p)
		if err == nil && !bytes.Equal(h.encode(), p) {
			t.Fatal("encoding differs from what was decoded")
		}
	})
}
