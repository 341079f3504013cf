package chunk

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// codec is the first byte inside a seal: how the payload after it is coded.
type codec byte

const (
	codecRaw  codec = 0
	codecZstd codec = 1
)

// minGain: a chunk is stored compressed when that saves at least 1/minGain of
// it; less is not worth the decompression of every read.
const minGain = 32

// Encoders and decoders are pooled, each for one caller at a time, so that
// every worker finds its own, warm in its core's cache, and coding allocates
// nothing. There is no probe for incompressible data before the encoder: its
// own first look at 64 KiB of noise takes 6 µs, less than a histogram does.
var (
	encoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), // the seal authenticates
			zstd.WithWindowSize(maxWindow))
		if err != nil {
			return err
		}
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(maxWindow),
			zstd.WithDecodeAllCapLimit(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		return d
	}}
)

// maxWindow bounds what a decoder allocates on the word of a frame's header.
const maxWindow = MaxContents

// compress appends the zstd frame of plain to dst.
func compress(dst, plain []byte) []byte {
	e, ok := encoders.Get().(*zstd.Encoder)
	if !ok {
		// Only wrong options end here, and they are constants above.
		panic("chunk: zstd encoder options refused")
	}
	dst = e.EncodeAll(plain, dst)
	encoders.Put(e)
	return dst
}

// decode appends the plaintext behind a codec byte to dst, at most limit
// bytes of it.
func decode(dst, coded []byte, limit int) ([]byte, error) {
	payload := coded[1:]
	switch codec(coded[0]) {
	case codecRaw:
		if len(payload) > limit {
			return dst, fmt.Errorf("%d bytes of payload: %w", len(payload), ErrCorrupt)
		}
		return append(dst, payload...), nil
	case codecZstd:
		d, ok := decoders.Get().(*zstd.Decoder)
		if !ok {
			panic("chunk: zstd decoder options refused") // constants, as above
		}
		defer decoders.Put(d)
		// The decoder fills at most the capacity that it is given.
		start := len(dst)
		dst = slices.Grow(dst, limit)
		out, err := d.DecodeAll(payload, dst[:start:start+limit])
		if err != nil {
			return dst, fmt.Errorf("decompress: %w: %w", ErrCorrupt, err)
		}
		if len(out) == start || len(out)-start > limit {
			return dst, fmt.Errorf("decompress to %d bytes: %w", len(out)-start, ErrCorrupt)
		}
		return out, nil
	default:
		return dst, fmt.Errorf("codec %d, written by a newer version: %w", coded[0], ErrCorrupt)
	}
}
