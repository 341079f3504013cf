package blockmap

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

func FuzzDecodeList(f *testing.F) {
	l := &list{
		volume:     [16]byte{9},
		geometry:   Geometry{Size: 1 << 30, BlockSize: DefaultBlockSize},
		regionSize: defaultRegionSize,
		nextID:     5,
		segments: []segment{
			{doubt: "why", names: []label{{name: "a", created: time.Unix(1, 2)}, {name: "b"}}},
			{id: 4, blocks: 1 << 14, sum: 7, names: []label{{name: "c"}}},
		},
	}
	f.Add(l.encode())
	l.segments = []segment{{blocks: 1 << 14}}
	f.Add(l.encode())
	f.Add([]byte(listMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeList(b)
		if err != nil {
			if !errors.Is(err, errList) {
				t.Fatalf("another kind of error: %v", err)
			}
			return
		}
		if !bytes.Equal(l.encode(), b) {
			t.Fatal("not what was decoded")
		}
	})
}

func FuzzDecodeActivity(f *testing.F) {
	for _, a := range []activity{{}, {epoch: 3, regions: []int64{0, 1, 5, 1 << 20, maxRegions - 1}}, {exact: true, sum: 99}} {
		data, err := encodeActivity(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeActivity(data)
		if err != nil {
			if !errors.Is(err, errActivity) {
				t.Fatalf("another kind of error: %v", err)
			}
			return
		}
		again, err := encodeActivity(a)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("not what was decoded: %v", err)
		}
	})
}

func FuzzScanActivity(f *testing.F) {
	m := vfs.NewMem()
	log := newActivityLog(m, "/", [16]byte{1})
	if err := log.replace(activity{epoch: 1, regions: []int64{4}}); err != nil {
		f.Fatal(err)
	}
	if err := log.append(activity{epoch: 1, regions: []int64{4, 8}}); err != nil {
		f.Fatal(err)
	}
	good, err := vfs.ReadFile(m, log.name, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 0, 1}, uint16(0))
	f.Add([]byte{0xff}, uint16(4090))
	f.Fuzz(func(t *testing.T, patch []byte, at uint16) {
		b := bytes.Clone(good)
		copy(b[at:], patch)
		a, seq, torn, err := scanActivity(log.seal, b)
		switch {
		case bytes.Equal(b, good):
			if err != nil || len(a.regions) != 2 || seq != log.seq || torn {
				t.Fatalf("a good log: %v, %v", a, err)
			}
		case err == nil:
			t.Fatal("damage was not noticed")
		case !errors.Is(err, errActivity):
			t.Fatalf("another kind of error: %v", err)
		}
		if _, _, _, err := scanActivity(log.seal, patch); err == nil {
			t.Fatal("a fragment was taken for a log")
		}
	})
}

func FuzzLoadBits(f *testing.F) {
	const blocks = pageBlocks + 100
	truth := NewBitmap(blocks)
	truth.Set(5, 10)
	truth.Set(pageBlocks-3, 50)
	m := vfs.NewMem()
	b, err := createBits(m, "/", [16]byte{1}, 3, truth.words, blocks)
	if err != nil {
		f.Fatal(err)
	}
	good, err := vfs.ReadFile(m, bitsName("/", 3), 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	s := segment{id: 3, blocks: blocks, sum: sumOf(b.sums)}
	f.Add([]byte{1}, uint16(0), uint16(len(good)))
	f.Add([]byte{0}, uint16(4096+8), uint16(5000))
	f.Fuzz(func(t *testing.T, patch []byte, at, size uint16) {
		data := bytes.Clone(good)
		copy(data[min(int(at), len(data)):], patch)
		data = data[:min(int(size), len(data))]
		m := vfs.NewMem()
		if err := vfs.WriteFile(m, bitsName("/", 3), data, 0o600); err != nil {
			t.Fatal(err)
		}
		got := NewBitmap(blocks)
		doubt, damaged := readBits(m, "/", [16]byte{1}, s, got)
		for first, n := range truth.Runs() {
			for i := first; i < first+n; i++ {
				if !got.Test(i) {
					t.Fatalf("block %d is missing (%q, %d)", i, doubt, damaged)
				}
			}
		}
		if bytes.Equal(data, good) && (doubt != "" || damaged != 0 || got.Count() != truth.Count()) {
			t.Fatalf("a good file: %q, %d", doubt, damaged)
		}
	})
}
