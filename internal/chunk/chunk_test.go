package chunk

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files")

func testDomain(tb testing.TB, project string) *Domain {
	tb.Helper()
	d, err := NewDomain([32]byte{1, 2, 3}, [16]byte{4, 5, 6}, project)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func testSealer(tb testing.TB, d *Domain, p PackID) *Sealer {
	tb.Helper()
	s, err := d.Sealer(p)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func noise(tb testing.TB, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	d := testDomain(t, "p")
	s := testSealer(t, d, PackID{9})
	text := []byte(strings.Repeat("All work and no play. ", 4000))
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom([]Kind{Data, Node, Contents}).Draw(t, "kind")
		plain := rapid.SliceOfN(rapid.Byte(), 1, 2000).Draw(t, "noise")
		plain = append(plain, text[:rapid.IntRange(0, k.MaxPlain()-2000).Draw(t, "text")%len(text)]...)
		plain = plain[:min(len(plain), k.MaxPlain())]
		off := rapid.Uint32().Draw(t, "offset")
		prefix := []byte("before")
		id := d.ID(k, plain)
		sealed, err := s.Seal(prefix, off, k, id, plain)
		if err != nil || !bytes.HasPrefix(sealed, prefix) {
			t.Fatalf("seal: %v", err)
		}
		sealed = sealed[len(prefix):]
		if len(sealed) > len(plain)+Overhead {
			t.Fatalf("%d bytes sealed to %d", len(plain), len(sealed))
		}
		got, err := s.Open(prefix, off, k, id, sealed)
		if err != nil || !bytes.Equal(got[len(prefix):], plain) {
			t.Fatalf("open: %v", err)
		}
	})
}

func TestSizes(t *testing.T) {
	d := testDomain(t, "p")
	s := testSealer(t, d, PackID{9})
	for _, k := range []Kind{Data, Node, Contents, 0, 4, 255} {
		for _, n := range []int{0, k.MaxPlain() + 1} {
			if _, err := s.Seal(nil, 0, k, ID{}, make([]byte, n)); !errors.Is(err, ErrSize) {
				t.Errorf("%d bytes of %s: %v", n, k, err)
			}
		}
	}
	// The largest incompressible chunk is exactly MaxSealed.
	plain := noise(t, MaxPlain)
	sealed, err := s.Seal(nil, 0, Data, d.ID(Data, plain), plain)
	if err != nil || len(sealed) != MaxSealed {
		t.Errorf("%d bytes, %v", len(sealed), err)
	}
	if _, err := d.Sealer(PackID{}); err == nil {
		t.Error("a pack without ID has a sealer")
	}
}

// TestTampering changes every bit of a sealed chunk and everything that it is
// bound to.
func TestTampering(t *testing.T) {
	d := testDomain(t, "p")
	s := testSealer(t, d, PackID{9})
	for _, plain := range [][]byte{[]byte("x"), []byte(strings.Repeat("text ", 40)), noise(t, 100)} {
		id := d.ID(Data, plain)
		sealed, err := s.Seal(nil, 7, Data, id, plain)
		if err != nil {
			t.Fatal(err)
		}
		refused := func(what string, s *Sealer, off uint32, k Kind, id ID, sealed []byte) {
			t.Helper()
			if got, err := s.Open([]byte("dst"), off, k, id, sealed); !errors.Is(err, ErrCorrupt) || string(got) != "dst" {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
		for i := range sealed {
			for bit := range 8 {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1 << bit
				refused("bit flip", s, 7, Data, id, bad)
			}
			refused("cut", s, 7, Data, id, sealed[:i])
		}
		refused("longer", s, 7, Data, id, append(bytes.Clone(sealed), 0))
		refused("offset", s, 8, Data, id, sealed)
		refused("kind", s, 7, Node, id, sealed)
		other := id
		other[19]++
		refused("ID", s, 7, Data, other, sealed)
		refused("pack", testSealer(t, d, PackID{10}), 7, Data, id, sealed)
		refused("project", testSealer(t, testDomain(t, "q"), PackID{9}), 7, Data, id, sealed)
		for name, key := range map[string]struct {
			content [32]byte
			repo    [16]byte
		}{
			"repository": {[32]byte{1, 2, 3}, [16]byte{4, 5, 7}},
			"key":        {[32]byte{1, 2, 4}, [16]byte{4, 5, 6}},
		} {
			dd, err := NewDomain(key.content, key.repo, "p")
			if err != nil {
				t.Fatal(err)
			}
			refused(name, testSealer(t, dd, PackID{9}), 7, Data, id, sealed)
		}
	}
}

// TestWrongID: bytes that were sealed faithfully under an ID that is not theirs.
func TestWrongID(t *testing.T) {
	d := testDomain(t, "p")
	s := testSealer(t, d, PackID{9})
	id := d.ID(Data, []byte("one"))
	sealed, err := s.Seal(nil, 0, Data, id, []byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(nil, 0, Data, id, sealed); !errors.Is(err, ErrCorrupt) {
		t.Errorf("opened: %v", err)
	}
}

func TestIDs(t *testing.T) {
	d := testDomain(t, "p")
	seen := map[ID]string{}
	for name, id := range map[string]ID{
		"data": d.ID(Data, []byte("a")), "node": d.ID(Node, []byte("a")), "contents": d.ID(Contents, []byte("a")),
		"other": testDomain(t, "q").ID(Data, []byte("a")), "content": d.ID(Data, []byte("b")), "empty": d.ID(Data, nil),
	} {
		if o, ok := seen[id]; ok {
			t.Errorf("%s and %s have one ID", name, o)
		}
		seen[id] = name
	}
	p := NewPackID([16]byte{1, 15: 2}, 0x1234, [14]byte{3, 13: 4})
	if p != (PackID{1, 15: 2, 16: 0x12, 17: 0x34, 18: 3, 31: 4}) || p.Session() != [16]byte{1, 15: 2} || p.Epoch() != 0x1234 {
		t.Errorf("parts of %s", p)
	}
	if q, err := ParsePackID(p.String()); err != nil || q != p {
		t.Errorf("parse: %s, %v", q, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("g", 64), strings.Repeat("A", 64), strings.Repeat("0", 66)} {
		if _, err := ParsePackID(s); err == nil {
			t.Errorf("%q is a pack ID", s)
		}
	}
}

// TestBomb: a frame that inflates beyond its kind's limit, with and without a
// true size in its header.
func TestBomb(t *testing.T) {
	for _, n := range []int{MaxPlain + 1, 4 << 20, 64 << 20} {
		var b bytes.Buffer
		stream, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(64<<10))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if err := stream.Close(); err != nil {
			t.Fatal(err)
		}
		whole := compress(nil, make([]byte, n))
		for name, payload := range map[string][]byte{"stream": b.Bytes(), "whole": whole} {
			got, err := decode([]byte("dst"), append([]byte{byte(codecZstd)}, payload...), MaxPlain)
			if !errors.Is(err, ErrCorrupt) || string(got) != "dst" {
				t.Errorf("%s of %d bytes: %d bytes, %v", name, n, len(got), err)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	d := testDomain(f, "p")
	s := testSealer(f, d, PackID{9})
	for _, plain := range []string{"x", strings.Repeat("text ", 40)} {
		sealed, err := s.Seal(nil, 7, Data, d.ID(Data, []byte(plain)), []byte(plain))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sealed)
	}
	f.Add([]byte{})
	id := d.ID(Data, []byte("x"))
	want, err := s.Seal(nil, 7, Data, id, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := s.Open(nil, 7, Data, id, b)
		switch {
		case err == nil && !bytes.Equal(b, want):
			t.Fatal("forged")
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Fatalf("error without a type: %v", err)
		case err == nil && string(plain) != "x":
			t.Fatalf("%q", plain)
		}
	})
}

// FuzzDecode fuzzes what is behind the seal, as if a writer were hostile.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0, 1, 2})
	f.Add(compress([]byte{byte(codecZstd)}, []byte(strings.Repeat("text ", 40))))
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		out, err := decode(nil, b, 4096)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error without a type: %v", err)
		}
		if len(out) > 4096 {
			t.Fatalf("%d bytes", len(out))
		}
	})
}

// TestGolden holds the format still: IDs, keys, nonces, associated data and
// codecs. Compressed chunks are opened, not made again, as an encoder may
// become better.
func TestGolden(t *testing.T) {
	type vector struct {
		Kind              Kind
		Offset            uint32
		Plain, ID, Sealed string
	}
	d := testDomain(t, "golden")
	s := testSealer(t, d, NewPackID([16]byte{0xaa}, 7, [14]byte{0xbb}))
	const file = "testdata/golden.json"
	if *update {
		var vs []vector
		for i, plain := range []string{"x", strings.Repeat("compressible ", 30), "node"} {
			k := []Kind{Data, Data, Node}[i]
			id := d.ID(k, []byte(plain))
			sealed, err := s.Seal(nil, uint32(i*1000), k, id, []byte(plain))
			if err != nil {
				t.Fatal(err)
			}
			vs = append(vs, vector{k, uint32(i * 1000), plain, id.String(), hex.EncodeToString(sealed)})
		}
		b, err := json.MarshalIndent(vs, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil || len(vs) == 0 {
		t.Fatalf("%d vectors, %v", len(vs), err)
	}
	for i, v := range vs {
		id := d.ID(v.Kind, []byte(v.Plain))
		if id.String() != v.ID {
			t.Errorf("vector %d: ID %s, not %s", i, id, v.ID)
		}
		sealed, err := hex.DecodeString(v.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Open(nil, v.Offset, v.Kind, id, sealed); err != nil || string(got) != v.Plain {
			t.Errorf("vector %d: %q, %v", i, got, err)
		}
		if len(sealed) == len(v.Plain)+Overhead {
			if again, err := s.Seal(nil, v.Offset, v.Kind, id, []byte(v.Plain)); err != nil || !bytes.Equal(again, sealed) {
				t.Errorf("vector %d: sealed to %x, %v", i, again, err)
			}
		}
	}
}
