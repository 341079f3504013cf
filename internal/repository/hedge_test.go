package repository

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// hanging is a store whose reads of packs hang, whatever their context says,
// until they are let; then it writes nonsense into the buffer that it was given.
type hanging struct {
	objstore.Store

	mu   sync.Mutex
	gate chan struct{} // nil: it does not hang
	hung sync.WaitGroup
}

func (h *hanging) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gate = make(chan struct{})
}

// release lets all calls end, and returns when they have.
func (h *hanging) release() {
	h.mu.Lock()
	close(h.gate)
	h.gate = nil
	h.mu.Unlock()
	h.hung.Wait()
}

func (h *hanging) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	h.mu.Lock()
	gate := h.gate
	if gate != nil && len(name) > 6 && name[:6] == "packs/" {
		h.hung.Add(1)
		defer h.hung.Done()
	} else {
		gate = nil
	}
	h.mu.Unlock()
	if gate == nil {
		return h.Store.Get(ctx, name, off, n, dst)
	}
	<-gate
	for i := range dst[:cap(dst)] {
		dst[:cap(dst)][i] = 0xee
	}
	return dst, context.Canceled
}

// TestAHangingStoreBlocksNoReads reads while one store hangs, without counting
// on a timeout, and makes sure that what the store does to its buffers later is
// nobody's.
func TestAHangingStoreBlocksNoReads(t *testing.T) {
	c := newCluster(6)
	c.init(t, 4, 2)
	h := &hanging{Store: c.faulty[0]}
	stores := c.stores()
	stores[0] = h
	o := Options{Stores: stores, Password: password, Timing: Timing{Call: time.Minute, Grace: time.Minute, Read: time.Hour, Aside: time.Hour}}
	r, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	disk := randomContent(seeded(33), 200, 150)
	disk.mustBackup(t, r, "b", "", nil)
	mustVerify(t, disk, r, "b") // how long reads take
	h.hang()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := disk.verify(t.Context(), r, "b"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := disk.verify(t.Context(), r, "b"); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	h.release()
	close(stop)
	wg.Wait()
	mustVerify(t, disk, r, "b")
}

// TestASlowStoreIsPutAside: when it was too slow a few times in a row it is not
// asked any more, and is again later.
func TestASlowStoreIsPutAside(t *testing.T) {
	c, _ := fresh(t)
	now := time.Unix(1_760_000_000, 0)
	var mu sync.Mutex
	r := c.open(t, func(o *Options) {
		o.Timing = Timing{Read: time.Hour, Aside: time.Minute}
		o.Cache = CacheSizes{Nodes: 1, Blocks: 1}
		o.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	disk := randomContent(seeded(34), 200, 150)
	disk.mustBackup(t, r, "b", "", nil)
	mustVerify(t, disk, r, "b")
	asked := 0
	c.faulty[2].SetFaults(memstore.Faults{Before: func(ctx context.Context, call memstore.Call) error {
		if call.Op != "get" {
			return nil
		}
		mu.Lock()
		asked++
		mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}})
	for range 5 {
		mustVerify(t, disk, r, "b")
	}
	before := asked
	for range 5 {
		mustVerify(t, disk, r, "b")
	}
	if before == 0 || asked != before {
		t.Errorf("a store that hangs was asked %d times, then %d times more", before, asked-before)
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	mustVerify(t, disk, r, "b")
	if asked == before {
		t.Error("the store is never asked again")
	}
}

func TestPace(t *testing.T) {
	p := &pace{}
	if got := p.patience(100); got != paceUnknown {
		t.Errorf("without samples %s", got)
	}
	for i := range 30 {
		d := 40 * time.Millisecond
		if i%3 == 0 {
			d = time.Second // one of three stores is slow
		}
		p.note(100, d)
		p.note(1<<20, time.Microsecond)
	}
	if got := p.patience(200); got != 120*time.Millisecond {
		t.Errorf("small reads: %s", got)
	}
	if got := p.patience(1 << 20); got != paceLeast {
		t.Errorf("large reads: %s", got)
	}
	for range paceMost {
		p.spend()
	}
	if got := p.patience(200); got != 0 {
		t.Errorf("when everything is slow: %s", got)
	}
	for range 40 {
		p.note(100, 40*time.Millisecond)
	}
	if got := p.patience(200); got == 0 {
		t.Error("it is never patient again")
	}
}
