package nbd

import "sync"

// budget is an amount of memory that several connections share.
type budget struct {
	mu          sync.Mutex
	limit, used int64
}

// try takes n if that much is left.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.limit-b.used {
		return false
	}
	b.used += n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}
