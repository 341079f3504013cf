package repository

import (
	"container/list"
	"sync"
)

// lru is a cache with a budget in bytes. It may be used concurrently; the
// values must not be changed by anybody.
type lru[K comparable, V any] struct {
	budget int64

	mu    sync.Mutex
	used  int64
	items map[K]*list.Element
	order *list.List // most recently used first
}

type lruItem[K comparable, V any] struct {
	key   K
	value V
	size  int64
}

func newLRU[K comparable, V any](budget int64) *lru[K, V] {
	return &lru[K, V]{budget: budget, items: make(map[K]*list.Element), order: list.New()}
}

func (c *lru[K, V]) get(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		var zero V
		return zero, false
	}
	c.order.MoveToFront(e)
	item, _ := e.Value.(*lruItem[K, V])
	return item.value, true
}

// remove forgets a value.
func (c *lru[K, V]) remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		return
	}
	if item, ok := c.order.Remove(e).(*lruItem[K, V]); ok {
		c.used -= item.size
	}
	delete(c.items, key)
}

// put adds a value of the given size in bytes and drops the least recently
// used ones beyond the budget.
func (c *lru[K, V]) put(key K, value V, size int64) {
	if size > c.budget {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.items[key]; ok {
		return // equal: keys name immutable things
	}
	c.items[key] = c.order.PushFront(&lruItem[K, V]{key, value, size})
	c.used += size
	for c.used > c.budget {
		e := c.order.Back()
		item, ok := c.order.Remove(e).(*lruItem[K, V])
		if !ok {
			return
		}
		delete(c.items, item.key)
		c.used -= item.size
	}
}
