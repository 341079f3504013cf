package volume

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A medium that several hosts reach is in the page cache of each of them. What one
// host writes leaves the pages of the others as they are, so these are dropped before
// anybody here relies on what is read: when the volume is opened for writing, and
// before a snapshot that asks for it. While the volume is open for writing here nobody
// else may write, and the cache is as good as the medium.

// evictPatience is how long is waited for pages that somebody uses. It is a variable for tests.
var evictPatience = 2 * time.Second

// evictWindow is the least that is dropped at once: a page goes only together with its
// folio, which is aligned to its own size.
const evictWindow = 128 << 20

// pages is the page cache of one file.
type pages interface {
	// drop gives up the pages of a range that are clean and that nobody uses.
	drop(off, n int64) error
	// cached counts the pages of a range; known is false if the kernel does not tell.
	cached(off, n int64) (count uint64, known bool, err error)
}

// RefreshCache has the volume's content read from its medium anew if another host may
// have written it. It waits for disks. Nothing that was written here is lost.
func (v *Volume) RefreshCache() error {
	o := &v.openings
	o.changing.Lock() // nobody begins to write meanwhile
	defer o.changing.Unlock()
	if _, users := o.now(); users > 0 {
		return nil // it was done when they came
	}
	return v.refreshCache()
}

// refreshCache is RefreshCache with openings.changing held and nobody writing.
func (v *Volume) refreshCache() error {
	if !v.data.shared {
		return nil
	}
	if err := v.syncData(); err != nil { // dirty pages are not dropped
		return err
	}
	err := v.data.reopen()
	if err == nil {
		err = evict(v.data, v.data.size, evictPatience)
	}
	if err != nil {
		return fmt.Errorf("pages of %s stay cached, and what another host wrote would not be seen (%w); end what reads or maps it on this host, and try again: %w",
			v.rec.dataPath(v.dir), err, ErrStale)
	}
	return nil
}

// reopen opens and closes a file once more. That is when a network file system looks
// whether the file was changed elsewhere.
func (d *dataFile) reopen() error {
	if d.device {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", d.os.Fd())) // by whatever name it has now
	if err != nil {
		return fmt.Errorf("open it once more: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close it again: %w", err)
	}
	return nil
}

// drop implements pages.
func (d *dataFile) drop(off, n int64) error {
	if err := unix.Fadvise(int(d.os.Fd()), off, n, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop it from the page cache: %w", err)
	}
	return nil
}

// cached implements pages. The call is new in Linux 6.5; older sandboxes answer EPERM to
// calls that they do not know.
func (d *dataFile) cached(off, n int64) (count uint64, known bool, err error) {
	r := unix.CachestatRange{Off: uint64(off), Len: uint64(n)} //nolint:gosec // neither is negative
	var st unix.Cachestat_t
	err = unix.Cachestat(uint(d.os.Fd()), &r, &st, 0)
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("look at its page cache: %w", err)
	}
	return st.Cache, true, nil
}

// evict drops a file of a size from the page cache. Others may read it meanwhile: what
// was seen without a page once has none from before, whoever reads it anew. Where the
// kernel does not tell what is cached, pages that somebody uses at this moment may stay.
func evict(p pages, size int64, patience time.Duration) error {
	// Twice, for kernels that do not tell: the first time clears pages out of the way of the second.
	for range 2 {
		if err := p.drop(0, 0); err != nil {
			return err
		}
	}
	return evictRange(p, 0, size, time.Now().Add(patience))
}

// evictRange halves a range until what is left is single pages, for which it waits.
func evictRange(p pages, off, n int64, until time.Time) error {
	gone := func() (bool, error) {
		count, known, err := p.cached(off, n)
		return count == 0 || !known, err
	}
	if ok, err := gone(); ok || err != nil {
		return err
	}
	first := off &^ (evictWindow - 1)
	length := (off+n+evictWindow-1)&^(evictWindow-1) - first
	page := int64(os.Getpagesize())
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if err := p.drop(first, length); err != nil {
			return err
		}
		if ok, err := gone(); ok || err != nil {
			return err
		}
		if n > page {
			half := (n/2 + page - 1) / page * page
			if err := evictRange(p, off, half, until); err != nil {
				return err
			}
			return evictRange(p, off+half, n-half, until)
		}
		if time.Now().After(until) {
			return fmt.Errorf("somebody uses the page at %d", off)
		}
		<-time.After(pause)
	}
}
