package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// fillPacks stores incompressible blocks worth n packs and a bit.
func fillPacks(ctx context.Context, t *testing.T, s *Session, n int) {
	t.Helper()
	w, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	plain := make([]byte, testBlock)
	rnd := seeded(90)
	for i := range plain {
		plain[i] = byte(rnd.Uint32())
	}
	for i := range n * 256 {
		binary.BigEndian.PutUint64(plain, uint64(i))
		if _, stored, failed := w.PutBlock(ctx, w.BlockID(plain), plain); failed != nil || stored == 0 {
			t.Fatalf("block %d: %+v, %v", i, stored, failed)
		}
	}
	if err = w.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// A store whose writes hang slows nothing: what its queue has no room for is
// owed, and said so; memory stays that of the queues.
func TestSlowStoreOwes(t *testing.T) {
	c, _ := fresh(t)
	r := c.open(t, func(o *Options) { o.Timing = Timing{Call: 10 * time.Second, Grace: 20 * time.Millisecond} })
	release := make(chan struct{})
	puts := make(chan struct{}, 1000)
	c.faulty[3].SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
		if call.Op == "put" && strings.HasPrefix(call.Name, packPrefix) {
			puts <- struct{}{}
			<-release
			return objstore.ErrDown
		}
		return nil
	}})
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	fillPacks(t.Context(), t, s, 5)
	v := &content{size: testBlock}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top}); o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	st := s.Stored()
	if st.Packs < 5 || st.Owed["mem:3"] != st.Packs || len(st.Owed) != 1 {
		t.Errorf("%+v", st)
	}
	if len(puts) != 1 {
		t.Errorf("%d writes were begun on a store that answers none", len(puts))
	}
	close(release)
	c.heal()
	for _, status := range c.open(t).Status(t.Context()) {
		if want := map[bool]int{true: st.Packs}[status.URL == "mem:3"]; status.Owed != want {
			t.Errorf("%s owes %d, want %d", status.URL, status.Owed, want)
		}
	}
}

// Stores that are full are named as that: which they are is what to act upon.
func TestFullStoresAreNamed(t *testing.T) {
	c, r := fresh(t)
	for _, f := range c.faulty[1:3] {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if call.Op == "put" && strings.HasPrefix(call.Name, packPrefix) {
				return objstore.ErrNoSpace
			}
			return nil
		}})
	}
	o, err := randomContent(seeded(91), 50, 10).backup(t.Context(), r, "b", "", nil)
	if o != OutcomeFailed || !errors.Is(err, ErrTooFewStores) || !errors.Is(err, objstore.ErrNoSpace) ||
		!strings.Contains(err.Error(), "mem:1 is full: free some space there; mem:2 is full") {
		t.Errorf("%v, %v", o, err)
	}
}

// With more stores hanging than the write rule bears, a backup waits for them,
// and ends when it is canceled.
func TestBackpressureEndsWithTheContext(t *testing.T) {
	c, _ := fresh(t)
	r := c.open(t, func(o *Options) { o.Timing = Timing{Call: 200 * time.Millisecond, Grace: time.Millisecond} })
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{}, 1000)
	for _, f := range c.faulty[:2] {
		f.SetFaults(memstore.Faults{Before: func(ctx context.Context, call memstore.Call) error {
			if call.Op == "put" && strings.HasPrefix(call.Name, packPrefix) {
				begun <- struct{}{}
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}})
	}
	w, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-begun
		<-begun
		cancel()
	}()
	plain := make([]byte, testBlock)
	rnd := seeded(91)
	for i := range plain {
		plain[i] = byte(rnd.Uint32())
	}
	for i := 0; ; i++ {
		binary.BigEndian.PutUint64(plain, uint64(i))
		if _, _, err = w.PutBlock(ctx, w.BlockID(plain), plain); err != nil {
			break
		}
		if i > 256*(queueRoom+3) {
			t.Fatal("no backpressure")
		}
	}
	if err = w.Close(ctx); err == nil {
		t.Error("Close of a worker that was canceled says nothing")
	}
	if err = s.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	c.heal()
	if list, err := c.open(t).Backups(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("Backups = %v, %v", list, err)
	}
}
