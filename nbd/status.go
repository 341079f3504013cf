package nbd

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/cairnbackup/cairn/blockmap"
)

// statusMemory is what the answer for one context may take.
const statusMemory = maxStatusExtent * (8 + 24)

var errBadMap = errors.New("the device described another range than it was asked for")

// mapRange asks the device about a range and returns what it says of it: sound
// extents, clipped to the range, equal neighbors joined. They may stop early.
func (t *transmission) mapRange(name string, off, n int64) ([]blockmap.Extent, error) {
	extents, err := t.dev.Map(name, off, n)
	if err != nil {
		return nil, err
	}
	at, end := off, off+n
	out := extents[:0:0]
	for _, e := range extents {
		if at >= end || len(out) > maxStatusExtent {
			break
		}
		if e.Offset != at || e.Length <= 0 {
			return nil, errBadMap
		}
		e.Length = min(e.Length, end-at)
		at += e.Length
		if k := len(out); k > 0 && out[k-1].State == e.State {
			out[k-1].Length += e.Length
			continue
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errBadMap
	}
	return out[:min(len(out), maxStatusExtent)], nil
}

// status answers BLOCK_STATUS: one chunk for each context.
func (t *transmission) status(r request) {
	for i, name := range t.contexts {
		extents, err := t.mapRange(name, int64(r.offset), int64(r.length)) //nolint:gosec // within the device's size
		if err != nil {
			t.finishSoon(r, err)
			return
		}
		if r.flags&cmdFlagReqOne != 0 {
			extents = extents[:1]
		}
		b := make([]byte, 0, chunkHeaderSize+4+8*len(extents))
		b = appendChunk(b, r.cookie, i == len(t.contexts)-1, chunkBlockStatus, 4+8*len(extents))
		b = binary.BigEndian.AppendUint32(b, uint32(i+1))
		for _, e := range extents {
			b = binary.BigEndian.AppendUint32(b, uint32(e.Length)) //nolint:gosec // clipped to a 32-bit range
			b = binary.BigEndian.AppendUint32(b, uint32(e.State))
		}
		if t.out.reply(b, true) != nil {
			return
		}
	}
}

func (t *transmission) trim(r request) error {
	if err := t.dev.Trim(int64(r.offset), int64(r.length)); err != nil { //nolint:gosec // within the device's size
		return err
	}
	t.counters.Trims.Add(1)
	t.counters.TrimBytes.Add(int64(r.length))
	return t.fua(r)
}

func (t *transmission) zero(r request) error {
	punch := r.flags&cmdFlagNoHole == 0
	if err := t.dev.Zero(int64(r.offset), int64(r.length), punch); err != nil { //nolint:gosec // within the device's size
		return err
	}
	t.counters.Zeroes.Add(1)
	t.counters.ZeroBytes.Add(int64(r.length))
	return t.fua(r)
}

// cache answers CACHE: it reads the range so that it is near.
func (t *transmission) cache(ctx context.Context, r request) (err error) {
	off, rest := int64(r.offset), int64(r.length) //nolint:gosec // within the device's size
	withBuffer(smallBuffer-headRoom, func(b []byte) {
		for rest > 0 && err == nil {
			if err = ctx.Err(); err != nil {
				return
			}
			n := min(rest, int64(len(b)))
			err = readFull(t.dev, b[:n], off)
			off, rest = off+n, rest-n
		}
	})
	return err
}
