package fusefs

import (
	"errors"
	"sync"
	"time"
)

var errSize = errors.New("the image is not as long as the listing says")

// sizes counts how many bytes of each backup are allocated, for st_blocks. A
// count walks the whole map of an image, so it is made at most once, only when
// somebody asks, and in the background when it takes long.
type sizes struct {
	failed func(error)
	wg     sync.WaitGroup
	slots  chan struct{}

	mu     sync.Mutex
	counts map[string]*count
}

type count struct {
	done  chan struct{} // closed when bytes and err are set
	bytes int64
	err   error
}

func newSizes(failed func(error)) *sizes {
	return &sizes{failed: failed, slots: make(chan struct{}, 2), counts: make(map[string]*count)}
}

// allocated returns the allocated bytes of a backup and true, or its size and
// false while they are not known. With no time to wait it starts no count.
func (z *sizes) allocated(p *pool, e Entry, wait time.Duration) (int64, bool) {
	z.mu.Lock()
	c, ok := z.counts[e.ID]
	if !ok && wait > 0 {
		c = &count{done: make(chan struct{})}
		z.counts[e.ID] = c
		z.wg.Go(func() { z.count(p, e, c) })
	}
	z.mu.Unlock()
	if c == nil {
		return e.Size, false
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-c.done:
		case <-t.C:
		}
	}
	select {
	case <-c.done:
		if c.err == nil {
			return c.bytes, true
		}
	default:
	}
	return e.Size, false
}

func (z *sizes) count(p *pool, e Entry, c *count) {
	defer close(c.done)
	z.slots <- struct{}{}
	defer func() { <-z.slots }()
	s, err := p.get(e.ID)
	if err == nil {
		c.bytes, err = allocated(p.life(), s.image)
		p.put(s)
	}
	if err != nil {
		c.err = err
		z.failed(err)
		z.mu.Lock()
		delete(z.counts, e.ID) // the next stat tries again
		z.mu.Unlock()
	}
}

// wait returns when no count is running any more.
func (z *sizes) wait() { z.wg.Wait() }
