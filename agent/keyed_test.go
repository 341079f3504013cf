package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// One key has one holder, other keys are free, and who waits can give up.
func TestKeyed(t *testing.T) {
	var k keyed
	var wg sync.WaitGroup
	n := map[string]*int{"a": new(int), "b": new(int)}
	for i := range 200 {
		key := string("ab"[i%2])
		wg.Go(func() {
			unlock, err := k.lock(t.Context(), key)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			*n[key]++ // a race if two hold it
		})
	}
	wg.Wait()
	if *n["a"] != 100 || *n["b"] != 100 || len(k.held) != 0 {
		t.Errorf("%d, %d, %d are held", *n["a"], *n["b"], len(k.held))
	}
	unlock, err := k.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = k.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	free, err := k.lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	free()
}
