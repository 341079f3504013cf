package storetest

import "unsafe"

// aligned returns a copy of p that starts at a page: what lets a store write
// past the page cache.
func aligned(p []byte) []byte {
	const page = 4096
	buf := make([]byte, len(p)+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (page - 1)
	out := buf[skip : skip+len(p)]
	copy(out, p)
	return out
}
