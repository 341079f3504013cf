package volume

import (
	"testing"

	"pgregory.net/rapid"
)

// No block that load knows something of is passed over, and none that has a
// page is invented.
func TestIndexTouched(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex(rapid.Int64Range(1, 5*indexPageLen).Draw(t, "blocks"))
		for _, b := range rapid.SliceOfN(rapid.Int64Range(0, x.blocks-1), 0, 4).Draw(t, "copied") {
			x.cell(b).Store(cellSkipped)
		}
		b := rapid.Int64Range(0, 6*indexPageLen).Draw(t, "from")
		end := rapid.Int64Range(b, 7*indexPageLen).Draw(t, "end")
		got := x.touched(b, end)
		if got < b || got > end {
			t.Fatalf("touched(%d, %d) = %d", b, end, got)
		}
		for at := b; at < got; at++ {
			if x.load(at) != cellAbsent {
				t.Fatalf("touched(%d, %d) = %d passes over block %d", b, end, got, at)
			}
		}
		if got < end && x.pages[got/indexPageLen].Load() == nil {
			t.Fatalf("touched(%d, %d) = %d, of which nothing is known", b, end, got)
		}
	})
}
