package serve_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

// A writer counts in a, then in b. In a snapshot of both at one instant, b is
// never ahead of a, and never behind by more than the write in between.
func TestGroupIsOneInstant(t *testing.T) {
	p := start(t, options(t))
	a, b := p.create(t, "a", mib), p.create(t, "b", mib)
	ca, cb := dial(t, a.URI), dial(t, b.URI)
	stop := make(chan struct{})
	var (
		wg       sync.WaitGroup
		writeErr error
	)
	wg.Go(func() {
		buf := make([]byte, 512)
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			binary.BigEndian.PutUint64(buf, i)
			if writeErr = ca.WriteAt(t.Context(), buf, 0, false); writeErr != nil {
				return
			}
			if writeErr = cb.WriteAt(t.Context(), buf, 0, false); writeErr != nil {
				return
			}
		}
	})
	for i := range 10 {
		ss := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"b", "a"}, Force: true, Temporary: true})
		var n [2]uint64
		for j, s := range ss {
			c := dial(t, s.URI)
			n[j] = binary.BigEndian.Uint64(read(t, c, 0, 512))
			closeClient(t, c)
			if err := p.DeleteSnapshot(t.Context(), s.ID); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if n[0] > n[1] || n[0]+1 < n[1] {
			t.Errorf("round %d: a is at %d, b at %d", i, n[1], n[0])
		}
	}
	close(stop)
	wg.Wait()
	if writeErr != nil {
		t.Error(writeErr)
	}
}

func TestGroupIsAllOrNothing(t *testing.T) {
	p := start(t, options(t))
	for _, name := range []string{"a", "b", "c"} {
		p.create(t, name, mib)
	}
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"c"}, Name: "s"})
	// A folder is where the socket of the last one should be.
	if err := os.Mkdir(p.o.NBDDir+"/b@t.sock", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		req  serve.CreateSnapshots
		code error
	}{
		{serve.CreateSnapshots{Volumes: []string{"a", "b", "c"}, Name: "s"}, serve.ErrConflict},
		{serve.CreateSnapshots{Volumes: []string{"a", "b", "nope"}}, serve.ErrNotFound},
		{serve.CreateSnapshots{Volumes: []string{"c", "a", "b"}, Name: "t", Checkpoints: []string{"x", "y", "z"}}, serve.ErrConflict},
	} {
		if _, err := p.CreateSnapshots(t.Context(), tt.req); !errors.Is(err, tt.code) {
			t.Errorf("%+v: %v, want %v", tt.req, err, tt.code)
		}
	}
	ss, err := p.Snapshots(t.Context(), "")
	if err != nil || len(ss) != 1 {
		t.Errorf("snapshots %+v, %v; want the first alone", ss, err)
	}
	vs, err := p.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if len(v.Checkpoints) != 0 {
			t.Errorf("volume %s has checkpoints %+v", v.Name, v.Checkpoints)
		}
	}
	es, err := os.ReadDir(p.o.NBDDir)
	if err != nil || len(es) != 5 {
		t.Errorf("sockets %v, %v", es, err)
	}
}

// Clients write, read and map while volumes and snapshots come and go; every
// snapshot is checked against what its volume held.
func TestManyAtOnce(t *testing.T) {
	p := start(t, options(t))
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			name := fmt.Sprintf("v%d", w)
			for i := range rounds {
				if err := oneRound(t, p, name, uint64(w*1000+i)); err != nil {
					t.Errorf("%s, round %d: %v", name, i, err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	var lister sync.WaitGroup
	lister.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := p.Volumes(t.Context()); err != nil {
				t.Errorf("list: %v", err)
			}
			if _, err := p.Snapshots(t.Context(), ""); err != nil {
				t.Errorf("list: %v", err)
			}
			if _, err := p.Status(t.Context()); err != nil {
				t.Errorf("status: %v", err)
			}
		}
	})
	wg.Wait()
	close(done)
	lister.Wait()
}
