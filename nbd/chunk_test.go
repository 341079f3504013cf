package nbd

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
)

// frame makes chunks of one kind of headers for a request at an offset.
func frame(f framing, offset int64, flags, kind uint16, parts ...any) []byte {
	data := encode(parts...)
	if f == extendedHeaders {
		return extChunk(flags, kind, 1, uint64(offset), data)
	}
	return encode(magicStructured, flags, kind, uint64(1), uint32(len(data)), data)
}

// answered lets one call hear replies, and returns what came of it.
func answered(s *session, c *call, replies []byte) error {
	nc := canned{bytes.NewReader(replies)}
	in := input{nc: nc}
	in.resize(clientBuffer)
	l := newLink(nc, in, s, new(ledger))
	c.finished, c.released = make(chan struct{}), make(chan struct{})
	l.slots <- struct{}{}
	if _, err := l.register(c); err != nil {
		return err
	}
	l.receive()
	<-c.finished
	return c.err
}

// However a server takes a read apart, and in whichever order it sends the parts,
// what comes out is what was there; and with one part less, nothing.
func TestChunksOfRead(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := rapid.SampledFrom([]framing{structuredReplies, extendedHeaders}).Draw(rt, "framing")
		off := rapid.Int64Range(0, 1<<62).Draw(rt, "offset")
		size := rapid.IntRange(1, 100_000).Draw(rt, "size")
		cuts := rapid.SliceOfNDistinct(rapid.IntRange(0, size-1), 0, min(size-1, 40), rapid.ID[int]).Draw(rt, "cuts")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		want := make([]byte, size)
		var chunks [][]byte
		cuts = append(cuts, size)
		slices.Sort(cuts)
		start := 0
		for _, end := range cuts {
			if start == end {
				continue
			}
			at := uint64(off) + uint64(start)
			if rng.IntN(3) == 0 {
				chunks = append(chunks, frame(f, off, 0, chunkOffsetHole, at, uint32(end-start)))
			} else {
				for i := start; i < end; i++ {
					want[i] = byte(rng.Uint32())
				}
				chunks = append(chunks, frame(f, off, 0, chunkOffsetData, at, want[start:end]))
			}
			start = end
		}
		rng.Shuffle(len(chunks), func(i, j int) { chunks[i], chunks[j] = chunks[j], chunks[i] })
		end := frame(f, off, chunkFlagDone, chunkNone)
		s := &session{size: 1<<63 - 1, framing: f}
		c := &call{command: cmdRead, off: off, n: int64(size), p: bytes.Repeat([]byte{0xee}, size)}
		if err := answered(s, c, encode(bytes.Join(chunks, nil), end)); err != nil || !bytes.Equal(c.p, want) {
			rt.Fatalf("%d parts: %v", len(chunks), err)
		}
		less := slices.Delete(slices.Clone(chunks), 0, 1)
		c = &call{command: cmdRead, off: off, n: int64(size), p: make([]byte, size)}
		if err := answered(s, c, encode(bytes.Join(less, nil), end)); err == nil {
			rt.Fatal("a read without one of its parts")
		}
		twice := append(slices.Clone(chunks), chunks[rng.IntN(len(chunks))])
		c = &call{command: cmdRead, off: off, n: int64(size), p: make([]byte, size)}
		if err := answered(s, c, encode(bytes.Join(twice, nil), end)); err == nil {
			rt.Fatal("a read with one part twice")
		}
	})
}

// Whatever lengths extents have, none goes beyond the export, none is missing, and
// their states are those that were sent.
func TestChunksOfStatus(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := rapid.SampledFrom([]framing{structuredReplies, extendedHeaders}).Draw(rt, "framing")
		size := rapid.Int64Range(1, 1<<63-1).Draw(rt, "size")
		off := rapid.Int64Range(0, size-1).Draw(rt, "offset")
		most := uint64(1<<32 - 1)
		if f == extendedHeaders {
			most = 1<<64 - 1
		}
		lengths := rapid.SliceOfN(rapid.OneOf(rapid.Uint64Range(1, most), rapid.Uint64Range(1, 1000)), 1, 50).Draw(rt, "lengths")
		var body []byte
		var want []blockmap.Extent
		at, beyond := off, false
		for i, n := range lengths {
			if f == extendedHeaders {
				body = append(body, encode(n, uint64(i%3))...)
			} else {
				body = append(body, encode(uint32(n), uint32(i%3))...)
			}
			if beyond = at == size; beyond {
				break
			}
			length := int64(min(n, uint64(size-at)))
			want = blockmap.Append(want, blockmap.Extent{Offset: at, Length: length, State: blockmap.State(i % 3)})
			at += length
		}
		var reply []byte
		if f == extendedHeaders {
			reply = frame(f, off, chunkFlagDone, chunkStatusExt, uint32(5), uint32(len(body)/16), body)
		} else {
			reply = frame(f, off, chunkFlagDone, chunkBlockStatus, uint32(5), body)
		}
		c := &call{command: cmdBlockStatus, off: off, n: size - off, context: ContextAllocation, room: room(100)}
		err := answered(&session{size: size, framing: f, contexts: []selectedContext{{5, ContextAllocation}}}, c, reply)
		if beyond != (err != nil) || err == nil && !slices.Equal(c.extents, want) {
			rt.Fatalf("%v, %v; want %v", c.extents, err, want)
		}
	})
}
