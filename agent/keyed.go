package agent

import (
	"context"
	"sync"
)

// keyed are locks by key, so that a slow data plane keeps only those who want the same.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

// lock waits until nobody else holds key, or ctx ends, which is the error.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		c, taken := k.held[key]
		if !taken {
			if k.held == nil {
				k.held = map[string]chan struct{}{}
			}
			c = make(chan struct{})
			k.held[key] = c
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				delete(k.held, key)
				close(c)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
