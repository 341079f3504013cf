package nbd

import (
	"math/rand/v2"
	"testing"
)

// TestBackground: a large read from an export that is read in the background comes in
// small chunks, but in one piece where the client insists or knows no chunks.
func TestBackground(t *testing.T) {
	const n = 200 << 10
	m := newMemory(1 << 20)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rand.Int())
	}
	m.WriteAt(data, 4096)
	e := m.export("disk")
	e.Background = true
	path := listen(t, serverOf(t, e))

	w := connect(t, path)
	w.enter("disk", true)
	w.request(0, cmdRead, 1, 4096, n)
	for off := 0; off < n; off += smallPiece {
		end, flags := min(off+smallPiece, n), uint16(0)
		if end == n {
			flags = chunkFlagDone
		}
		w.expectChunk(flags, chunkOffsetData, 1, uint64(4096+off), data[off:end])
	}
	w.request(cmdFlagDF, cmdRead, 2, 4096, n)
	w.expectChunk(chunkFlagDone, chunkOffsetData, 2, uint64(4096), data)
	w.alive()

	w = connect(t, path)
	w.enter("disk", false)
	w.request(0, cmdRead, 3, 4096, n)
	w.expectSimple(3, 0)
	w.expect(data)
	w.alive()
}
