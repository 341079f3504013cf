package nbd

import "sync"

// Payload buffers come in two sizes: most requests are small, and a large one
// is handled in pieces of maxPiece. headRoom is for the reply's header, so that
// header and data leave in one write.
const (
	headRoom    = 64
	smallBuffer = 64<<10 + headRoom
	largeBuffer = maxPiece + headRoom
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// bufferMemory is what a buffer for n bytes of payload costs.
func bufferMemory(n int) int64 {
	if n+headRoom <= smallBuffer {
		return smallBuffer
	}
	return largeBuffer
}

// withBuffer lends fn a buffer of at least n bytes and headRoom; n is at most
// maxPiece.
func withBuffer(n int, fn func(b []byte)) {
	b, done := takeBuffer(n)
	defer done()
	fn(b)
}

// takeBuffer is withBuffer for a buffer that changes hands; done gives it back.
func takeBuffer(n int) (b []byte, done func()) {
	if n+headRoom <= smallBuffer {
		p := smallBuffers.Get().(*[smallBuffer]byte) //nolint:errcheck,forcetypeassert // nothing else is in there
		return p[:], func() { smallBuffers.Put(p) }
	}
	p := largeBuffers.Get().(*[largeBuffer]byte) //nolint:errcheck,forcetypeassert // nothing else is in there
	return p[:], func() { largeBuffers.Put(p) }
}
