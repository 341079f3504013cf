package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// hold makes the calls of one kind wait in all stores until the function that it
// returns is called; began tells of the first.
func (r *rig) hold(op, prefix string) (began <-chan struct{}, release func()) {
	return holdCalls(r.stores, op, prefix)
}

// holdCalls is hold for any stores.
func holdCalls(stores []*memstore.Faulty, op, prefix string) (began <-chan struct{}, release func()) {
	first, gate := make(chan struct{}, 1000), make(chan struct{})
	for _, s := range stores {
		s.SetFaults(memstore.Faults{Before: func(ctx context.Context, c memstore.Call) error {
			if c.Op != op || !strings.HasPrefix(c.Name, prefix) {
				return nil
			}
			select {
			case first <- struct{}{}:
			default:
			}
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
	}
	return first, sync.OnceFunc(func() {
		close(gate)
		for _, s := range stores {
			s.SetFaults(memstore.Faults{})
		}
	})
}

// await waits for a call that is held.
func (r *rig) await(began <-chan struct{}) {
	r.Helper()
	select {
	case <-began:
	case <-time.After(30 * time.Second):
		r.Fatal("the call that is to be held did not come")
	}
}
