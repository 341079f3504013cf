package identity

import "container/list"

// recent keeps the values that were used last, at most so many.
type recent[K comparable, V any] struct {
	most  int
	items map[K]*list.Element
	order *list.List // of *entry, most recently used first
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newRecent[K comparable, V any](most int) *recent[K, V] {
	return &recent[K, V]{most: most, items: make(map[K]*list.Element), order: list.New()}
}

func (r *recent[K, V]) get(key K) (value V, ok bool) {
	e, ok := r.items[key]
	if !ok {
		return value, false
	}
	r.order.MoveToFront(e)
	item, _ := e.Value.(*entry[K, V])
	return item.value, true
}

func (r *recent[K, V]) put(key K, value V) {
	r.drop(key)
	r.items[key] = r.order.PushFront(&entry[K, V]{key, value})
	for len(r.items) > r.most {
		item, _ := r.order.Back().Value.(*entry[K, V])
		r.drop(item.key)
	}
}

func (r *recent[K, V]) drop(key K) {
	if e, ok := r.items[key]; ok {
		r.order.Remove(e)
		delete(r.items, key)
	}
}
