package nbd

import (
	"os"

	"golang.org/x/sys/unix"
)

// folioSize is how large the page cache's folios get by a write.
//
// The kernel caches a file in folios: units of one or more pages that it finds, locks and
// marks as a whole. What a write puts into the cache gets folios as large as the write is;
// and a small write into a folio costs with the folio's size, as it goes over all blocks of
// it. So a large write is cut where pages are missing in the cache. SPEED.md has figures.
const folioSize = 64 << 10

// inFolios calls write with parts of the n bytes at off that are to be written to f, in
// order, until one fails. There is one part if all of the range is cached, in what folios
// ever, or the kernel does not say; else each ends where a folio should.
func inFolios(f *os.File, off int64, n int, write func(off int64, n int) error) error {
	if n > folioSize && missing(f, off, int64(n)) {
		for part := folioSize - int(off%folioSize); part < n; part = folioSize {
			if err := write(off, part); err != nil {
				return err
			}
			off, n = off+int64(part), n-part
		}
	}
	return write(off, n)
}

// missing reports whether pages of a range are known not to be cached. The call is new in
// Linux 6.5.
func missing(f *os.File, off, n int64) bool {
	r := unix.CachestatRange{Off: uint64(off), Len: uint64(n)} //nolint:gosec // neither is negative
	var st unix.Cachestat_t
	if unix.Cachestat(uint(f.Fd()), &r, &st, 0) != nil {
		return false
	}
	page := int64(pageSize)
	return st.Cache < uint64((off+n-1)/page-off/page+1) //nolint:gosec // n is greater than zero
}
