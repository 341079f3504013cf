package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/blockmap"
)

const (
	// statusMemory is what the answer for one context may take.
	statusMemory = maxStatusExtent * (16 + 2*24)
	// statusPiece is the longest range that a device is asked to describe at once:
	// what fits into 32 bits, of which there are more with extended headers only.
	statusPiece = 1 << 32
	// changePiece is the longest range that a device is asked to trim or zero at once.
	changePiece = 128 << 20
)

var (
	errBadMap = errors.New("the device described another range than it was asked for")
	errEnough = errors.New("no more extents fit into the answer")
)

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

// status answers BLOCK_STATUS: one chunk for each context, or for those only that
// wanted numbers by their index, if it is not nil.
func (t *transmission) status(ctx context.Context, r request, wanted []int) {
	count := len(t.contexts)
	if wanted != nil {
		count = len(wanted)
	}
	for i := range count {
		k := i
		if wanted != nil {
			k = wanted[i]
		}
		extents, err := t.statusOf(ctx, t.contexts[k], r)
		if err != nil {
			t.finishSoon(r, err)
			return
		}
		if t.out.reply(t.statusChunk(r, i == count-1, uint32(k+1), extents), true) != nil {
			return
		}
	}
}

// statusOf describes the range of r in one context, as far as one chunk goes.
func (t *transmission) statusOf(ctx context.Context, name string, r request) ([]blockmap.Extent, error) {
	var all []blockmap.Extent
	most := maxStatusExtent
	if r.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	err := t.inPieces(ctx, r, statusPiece, func(off, n int64) error {
		extents, mapErr := t.mapRange(name, off, n)
		if mapErr != nil {
			return mapErr
		}
		for _, e := range extents {
			if all = blockmap.Append(all, e); len(all) > most {
				return errEnough
			}
		}
		if extents[len(extents)-1].End() < off+n {
			return errEnough // it stopped early, as it may
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return all[:min(len(all), most)], nil
}

// statusChunk returns one context's answer.
func (t *transmission) statusChunk(r request, done bool, id uint32, extents []blockmap.Extent) []byte {
	if !t.extended {
		n := 4 + 8*len(extents)
		b := t.appendChunk(make([]byte, 0, chunkHeaderSize+n), r, done, chunkBlockStatus, n)
		b = binary.BigEndian.AppendUint32(b, id)
		for _, e := range extents {
			b = binary.BigEndian.AppendUint32(b, uint32(e.Length)) //nolint:gosec // clipped to a 32-bit range
			b = binary.BigEndian.AppendUint32(b, uint32(e.State))
		}
		return b
	}
	n := 8 + 16*len(extents)
	b := t.appendChunk(make([]byte, 0, extReplySize+n), r, done, chunkStatusExt, n)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(extents))) //nolint:gosec // at most maxStatusExtent
	for _, e := range extents {
		b = binary.BigEndian.AppendUint64(b, uint64(e.Length)) //nolint:gosec // not negative
		b = binary.BigEndian.AppendUint64(b, uint64(e.State))
	}
	return b
}

// filteredStatus answers a BLOCK_STATUS whose payload has the length of the range
// and the contexts that it is about.
func (t *transmission) filteredStatus(ctx context.Context, r request) error {
	if r.length < 8 || r.length > uint64(8+4*len(t.contexts)) || r.length%4 != 0 {
		return t.reject(r, EINVAL, "the payload is not a length and some of the metadata contexts that were negotiated")
	}
	if t.in.buffered() < int(r.size()) {
		if err := t.out.flush(); err != nil {
			return err
		}
	}
	payload := make([]byte, r.length)
	if err := t.in.readFull(payload); err != nil {
		return err
	}
	c := cursor{b: payload}
	r.length, r.payload, r.flags = c.u64(), false, r.flags&^cmdFlagPayloadLen
	wanted := make([]int, 0, len(c.b)/4)
	for len(c.b) > 0 {
		id := c.u32()
		if id < 1 || int64(id) > int64(len(t.contexts)) || slices.Contains(wanted, int(id-1)) {
			return t.fail(r, EINVAL, "a metadata context that was not negotiated, or twice", false)
		}
		wanted = append(wanted, int(id-1))
	}
	if e, text := t.check(r); e != 0 {
		return t.fail(r, e, text, false)
	}
	if len(wanted) == 0 {
		return t.fail(r, EINVAL, "no metadata context was asked about", false)
	}
	return t.deferred(statusMemory, func() { t.status(ctx, r, wanted) })
}

// inPieces calls fn for consecutive parts of r's range, which end at multiples of
// piece. Between them it looks whether anybody still waits for the outcome: a range
// of many TiB must not keep a device busy for a client that is gone.
func (t *transmission) inPieces(ctx context.Context, r request, piece int64, fn func(off, n int64) error) error {
	off, rest := r.start(), r.size()
	for rest > 0 {
		n := min(rest, piece-off%piece)
		if err := fn(off, n); err != nil {
			return err
		}
		off, rest = off+n, rest-n
		if rest > 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (t *transmission) trim(ctx context.Context, r request) error {
	if err := t.inPieces(ctx, r, changePiece, t.dev.Trim); err != nil {
		return err
	}
	t.counters.Trims.Add(1)
	t.counters.TrimBytes.Add(r.size())
	return t.fua(r)
}

func (t *transmission) zero(ctx context.Context, r request) error {
	punch := r.flags&cmdFlagNoHole == 0
	zero := t.dev.Zero
	if r.flags&cmdFlagFastZero != 0 {
		fast, ok := t.dev.(FastZeroer)
		if !ok {
			return fmt.Errorf("zeros are written on this device, and no faster than other data: %w", ENOTSUP)
		}
		zero = fast.ZeroFast
	}
	err := t.inPieces(ctx, r, changePiece, func(off, n int64) error { return zero(off, n, punch) })
	if r.flags&cmdFlagFastZero != 0 && errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("%w: %w", ENOTSUP, err)
	}
	if err != nil {
		return err
	}
	t.counters.Zeroes.Add(1)
	t.counters.ZeroBytes.Add(r.size())
	return t.fua(r)
}

// cache answers CACHE: it reads the range so that it is near.
func (t *transmission) cache(ctx context.Context, r request) (err error) {
	off, rest := r.start(), r.size()
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
