package pack

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/chunk"
)

func readIn(container []byte) func(p []byte, off int64) error {
	return func(p []byte, off int64) error {
		if off < 0 || off+int64(len(p)) > int64(len(container)) {
			return errors.New("past the end")
		}
		copy(p, container[off:])
		return nil
	}
}

func TestBuilder(t *testing.T) {
	d := testDomain(t)
	buf := make([]byte, 0, TargetSize)
	rapid.Check(t, func(t *rapid.T) {
		b, err := NewBuilder(d, testPack, buf)
		if err != nil {
			t.Fatal(err)
		}
		type item struct {
			k     chunk.Kind
			ref   chunk.Ref
			plain []byte
		}
		var items []item
		for range rapid.IntRange(0, 30).Draw(t, "chunks") {
			k := rapid.SampledFrom([]chunk.Kind{chunk.Data, chunk.Node}).Draw(t, "kind")
			plain := bytesOf(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, chunk.MaxPlain).Draw(t, "bytes"))
			ref, aerr := b.Add(k, d.ID(k, plain), plain)
			if aerr != nil {
				t.Fatal(aerr)
			}
			items = append(items, item{k, ref, plain})
		}
		container, err := b.Finish()
		if err != nil || &container[0] != &buf[:1][0] || len(container) > TargetSize {
			t.Fatalf("finish: %d bytes, %v", len(container), err)
		}
		toc, err := ParseTOC(d, testPack, int64(len(container)), readIn(container))
		if err != nil || len(toc) != len(items) {
			t.Fatalf("%d entries of %d, %v", len(toc), len(items), err)
		}
		s, err := d.Sealer(testPack)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range toc {
			x := items[i]
			if e.Kind != x.k || e.ID != x.ref.ID || e.Offset != x.ref.Offset || e.Length != x.ref.Length {
				t.Fatalf("entry %d: %+v", i, e)
			}
			got, err := s.Open(nil, e.Offset, e.Kind, e.ID, container[e.Offset:e.Offset+e.Length])
			if err != nil || !bytes.Equal(got, x.plain) {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
	})
}

// TestFull fills a pack with the largest and with the smallest chunks: ErrFull
// comes in time, and a full pack is no longer than TargetSize.
func TestFull(t *testing.T) {
	d := testDomain(t)
	for _, n := range []int{chunk.MaxPlain, 1} {
		b, err := NewBuilder(d, testPack, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain := bytesOf(9, n)
		id := d.ID(chunk.Data, plain)
		for err == nil {
			_, err = b.Add(chunk.Data, id, plain)
		}
		size, chunks := b.Size(), b.Len()
		if !errors.Is(err, ErrFull) || n == 1 && chunks != maxChunks || n > 1 && size < TargetSize*98/100 {
			t.Errorf("%d chunks, %d bytes: %v", chunks, size, err)
		}
		if _, err = b.Add(chunk.Contents, id, plain); err == nil {
			t.Error("a pack takes a table of contents")
		}
		container, err := b.Finish()
		if err != nil || len(container) > TargetSize {
			t.Errorf("%d bytes, %v", len(container), err)
		}
		if toc, err := ParseTOC(d, testPack, int64(len(container)), readIn(container)); err != nil || len(toc) != chunks {
			t.Errorf("%d entries of %d, %v", len(toc), chunks, err)
		}
		if _, err := b.Add(chunk.Data, id, plain); err == nil {
			t.Error("a finished pack takes a chunk")
		}
		if _, err := b.Finish(); err == nil {
			t.Error("a pack is finished twice")
		}
	}
}

// TestContainerTampering changes every byte of a container: the chunk or the
// table that it belongs to is refused.
func TestContainerTampering(t *testing.T) {
	d := testDomain(t)
	container, refs := smallPack(t, d)
	s, err := d.Sealer(testPack)
	if err != nil {
		t.Fatal(err)
	}
	for i := range container {
		container[i] ^= 0x40
		_, found := ParseTOC(d, testPack, int64(len(container)), readIn(container))
		for _, r := range refs {
			_, oerr := s.Open(nil, r.Offset, chunk.Data, r.ID, container[r.Offset:r.Offset+r.Length])
			if in := uint32(i) >= r.Offset && uint32(i) < r.Offset+r.Length; in != (oerr != nil) {
				t.Errorf("byte %d: chunk at %d: %v", i, r.Offset, oerr)
			} else if in {
				found = oerr
			}
		}
		if found == nil {
			t.Errorf("byte %d goes unnoticed", i)
		}
		container[i] ^= 0x40
	}
	for n := range container {
		if _, err = ParseTOC(d, testPack, int64(n), readIn(container[:n])); err == nil {
			t.Errorf("cut to %d: parsed", n)
		}
	}
	other := testPack
	other[31]++
	if _, err := ParseTOC(d, other, int64(len(container)), readIn(container)); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("another pack: %v", err)
	}
}

func smallPack(tb testing.TB, d *chunk.Domain) ([]byte, []chunk.Ref) {
	tb.Helper()
	b, err := NewBuilder(d, testPack, nil)
	if err != nil {
		tb.Fatal(err)
	}
	var refs []chunk.Ref
	var r chunk.Ref
	for _, plain := range []string{"one", "the second chunk", "3"} {
		r, err = b.Add(chunk.Data, d.ID(chunk.Data, []byte(plain)), []byte(plain))
		if err != nil {
			tb.Fatal(err)
		}
		refs = append(refs, r)
	}
	container, err := b.Finish()
	if err != nil {
		tb.Fatal(err)
	}
	return container, refs
}

func FuzzTrailer(f *testing.F) {
	container, _ := smallPack(f, testDomain(f))
	f.Add(container[len(container)-trailerSize:], int64(len(container)))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		tr, err := decodeTrailer(b, size)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		if again := tr.append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzTOC(f *testing.F) {
	toc := appendTOC([]byte{tocVersion}, Entry{Kind: chunk.Data, Length: 100})
	f.Add(toc, 100)
	f.Add(appendTOC(toc, Entry{Kind: chunk.Node, Length: 20}), 120)
	f.Add([]byte{tocVersion}, 0)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		entries, err := decodeTOC(b, size)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		again := []byte{tocVersion}
		for _, e := range entries {
			again = appendTOC(again, e)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzShardHeader(f *testing.F) {
	c := testCoder(f, Geometry{4, 2})
	f.Add(c.appendHeader(nil, testPack, 3, 12345))
	f.Add(c.appendHeader(nil, testPack, 2, 12345))
	f.Add(testCoder(f, Geometry{4, 1}).appendHeader(nil, testPack, 3, 12345))
	f.Add([]byte("CAIRNSHD"))
	f.Fuzz(func(t *testing.T, b []byte) {
		length, err := c.decodeHeader(b, testPack, 3)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		if again := c.appendHeader(nil, testPack, 3, length); !bytes.Equal(again, b[:headerSize]) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
