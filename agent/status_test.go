package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// TestStatusOfHanging: the status of a repository does not wait for the stores of
// another, and says what it knows of it.
func TestStatusOfHanging(t *testing.T) {
	was := briefPatience
	briefPatience = 50 * time.Millisecond
	t.Cleanup(func() { briefPatience = was })
	r := testRig(t)
	far := another(t, "far")
	far.call = time.Hour
	r.with(Repo{Name: "far", Open: far.open})
	r.volume("web", 4<<20)
	r.in("far", CreateBackup{Volume: "web"})
	for _, s := range far.stores {
		s.SetFaults(memstore.Faults{Before: func(ctx context.Context, _ memstore.Call) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		defer s.SetFaults(memstore.Faults{})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := r.agent.Status(ctx)
	if err != nil || len(st.Others) != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	for _, x := range st.Repository.Stores {
		if x.State != "up" || x.Error != "" {
			t.Errorf("%+v", x)
		}
	}
	o := st.Others[0]
	if o.Backups != 1 || o.Repository.Error != "" || len(o.Repository.Stores) != 3 {
		t.Errorf("%+v", o)
	}
	for _, x := range o.Repository.Stores {
		if x.State != "down" || !strings.Contains(x.Error, `"cairn status --repo far" waits longer`) {
			t.Errorf("%+v", x)
		}
	}
}

// TestStatusOfBroken: a catalog that cannot be read is told of its repository alone.
func TestStatusOfBroken(t *testing.T) {
	s := bareServer(t, "far")
	other := s.hub.servers[1]
	if err := other.cat.Close(); err != nil {
		t.Fatal(err)
	}
	_, others, err := s.repositories(t.Context())
	if err != nil || len(others) != 1 || others[0].Name != "far" || others[0].Repository.Error == "" {
		t.Errorf("%+v, %v", others, err)
	}
	if _, _, err = other.repositories(t.Context()); err == nil {
		t.Error("its own status says nothing")
	}
}
