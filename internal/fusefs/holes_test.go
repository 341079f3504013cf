package fusefs

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawImage makes an image of at most 200 bytes, so that all offsets can be
// compared with the definition.
func drawImage(t *rapid.T) *mapImage {
	size := rapid.Int64Range(1, 200).Draw(t, "size")
	cuts := rapid.SliceOfNDistinct(rapid.Int64Range(0, size), 0, 8, rapid.ID[int64]).Draw(t, "cuts")
	slices.Sort(cuts)
	m := &mapImage{size: size, step: rapid.Int64Range(0, 20).Draw(t, "step")}
	for i := 0; i+1 < len(cuts); i += 2 {
		m.data = append(m.data, run{off: cuts[i], end: cuts[i+1]})
	}
	return m
}

func TestSeek(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawImage(t)
		var h holeCache
		for range 10 {
			off := rapid.Int64Range(0, m.size-1).Draw(t, "off")
			data := rapid.Bool().Draw(t, "data")
			want := off
			for want < m.size && m.isData(want) != data {
				want++
			}
			at, ok, err := h.seek(t.Context(), m, off, data)
			if err != nil {
				t.Fatal(err)
			}
			if wantOK := want < m.size || !data; at != want || ok != wantOK {
				t.Fatalf("seek(%d, data=%v) = %d, %v; want %d, %v", off, data, at, ok, want, wantOK)
			}
		}
	})
}

func TestAllocated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawImage(t)
		var want int64
		for _, r := range m.data {
			want += r.end - r.off
		}
		if got, err := allocated(t.Context(), m); err != nil || got != want {
			t.Fatalf("allocated = %d, %v; want %d", got, err, want)
		}
	})
}

// A sparse disk of many TiB must take few questions.
func TestAllocatedSparse(t *testing.T) {
	m := &mapImage{size: 4 << 40, data: []run{{off: 1 << 40, end: 1<<40 + 4096}}}
	if got, err := allocated(t.Context(), m); err != nil || got != 4096 {
		t.Fatalf("allocated = %d, %v", got, err)
	}
	if n := m.maps.Load(); n > 60 {
		t.Errorf("%d questions for extents", n)
	}
	var h holeCache
	m.maps.Store(0)
	if at, ok, err := h.seek(t.Context(), m, 8192, true); at != 1<<40 || !ok || err != nil {
		t.Errorf("seek = %d, %v, %v", at, ok, err)
	}
	if n := m.maps.Load(); n > 40 {
		t.Errorf("%d questions for extents", n)
	}
}
