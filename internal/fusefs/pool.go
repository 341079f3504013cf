package fusefs

import (
	"context"
	"sync"
	"syscall"
	"time"
)

// pool holds the open images: one per backup, however many readers it has.
// An image without users stays open for the idle time, so that a shell loop
// over a file does not open it anew for each command.
type pool struct {
	source Source
	idle   time.Duration
	max    int
	failed func(error)
	// life ends with the mount. Reads hang on it and not on the request's own
	// context: the kernel cancels that one for any signal to the reader, and a
	// page fault that answers "interrupted" kills the reader with SIGBUS.
	life func() context.Context

	mu   sync.Mutex
	open map[string]*shared
}

// shared is one open image and what is known about it.
type shared struct {
	id    string
	pool  *pool
	ready chan struct{} // closed when image or err is set
	image Image
	err   error

	// Guarded by pool.mu.
	users int
	since time.Time // when users became 0

	holes holeCache
}

func newPool(o *Options, life func() context.Context) *pool {
	return &pool{
		source: o.Source, idle: o.Idle, max: o.MaxImages, failed: o.Failed,
		life: life, open: make(map[string]*shared),
	}
}

// get returns the image of a backup, opening it if need be. The caller gives it
// back with put.
func (p *pool) get(id string) (*shared, error) {
	p.mu.Lock()
	s, ok := p.open[id]
	if !ok {
		if len(p.open) >= p.max && !p.evict() {
			p.mu.Unlock()
			return nil, syscall.EMFILE
		}
		s = &shared{id: id, pool: p, ready: make(chan struct{})}
		p.open[id] = s
	}
	s.users++
	p.mu.Unlock()
	if !ok {
		s.image, s.err = p.source.Open(p.life(), id)
		close(s.ready)
	}
	<-s.ready
	if s.err != nil {
		p.mu.Lock()
		if p.open[id] == s { // the next reader tries again
			delete(p.open, id)
		}
		p.mu.Unlock()
		return nil, s.err
	}
	return s, nil
}

// put gives an image back.
func (p *pool) put(s *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.users--
	s.since = time.Now()
}

// evict closes the image that has been idle for longest. The caller holds mu.
func (p *pool) evict() bool {
	var oldest *shared
	for _, s := range p.open {
		if s.users == 0 && (oldest == nil || s.since.Before(oldest.since)) {
			oldest = s
		}
	}
	if oldest == nil {
		return false
	}
	p.close(oldest)
	return true
}

// close closes an image without users. The caller holds mu: closing is quick,
// and an image that is opened again meanwhile would be a second one.
func (p *pool) close(s *shared) {
	delete(p.open, s.id)
	if err := s.image.Close(); err != nil {
		p.failed(err)
	}
}

// sweep closes what has been idle for too long.
func (p *pool) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.open {
		if s.users == 0 && now.Sub(s.since) >= p.idle {
			p.close(s)
		}
	}
}

// closeAll closes every image. All requests have been answered by now; a user
// that remains is a file whose last close the kernel had no time to report.
func (p *pool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.open {
		select {
		case <-s.ready:
			if s.err == nil {
				p.close(s)
			}
		default:
		}
	}
}
