package repository

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
)

// bufferPool keeps large buffers outside the garbage collector's heap: inside,
// the few that a session needs would double, because a collection starts only
// when the heap has grown by half or more.
type bufferPool struct {
	size int

	mu     sync.Mutex
	free   [][]byte
	closed bool
}

func newBufferPool(size int) *bufferPool {
	const page = 4096
	return &bufferPool{size: (size + page - 1) &^ (page - 1)}
}

// take returns a buffer of length zero that starts at a page. It is the
// caller's until put.
func (p *bufferPool) take() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b, nil
	}
	b, err := syscall.Mmap(-1, 0, p.size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes: %w", p.size, err)
	}
	return b[:0], nil
}

// put takes a buffer back that nobody uses any more.
func (p *bufferPool) put(b []byte) error {
	if cap(b) != p.size {
		return nil // not one of ours, or cut: the collector's, or a leak that is small
	}
	b = b[:0]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return unmap(b)
	}
	p.free = append(p.free, b)
	return nil
}

// trim gives unused buffers back to the system.
func (p *bufferPool) trim() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trimLocked()
}

func (p *bufferPool) trimLocked() error {
	var errs []error
	for _, b := range p.free {
		errs = append(errs, unmap(b))
	}
	p.free = nil
	return errors.Join(errs...)
}

func (p *bufferPool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.trimLocked()
}

func unmap(b []byte) error {
	if err := syscall.Munmap(b[:cap(b)]); err != nil {
		return fmt.Errorf("free a buffer: %w", err)
	}
	return nil
}
