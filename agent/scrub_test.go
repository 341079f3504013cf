package agent

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// The scrub comes round, finds a byte that changed on a store, and goes on behind a
// restart where it was.
func TestScrub(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	shadow := make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<18), 0)
	r.backup(CreateBackup{Volume: "disk"})
	r.stopAgent()
	mem, ok := r.stores[1].Store.(*memstore.Store)
	if !ok {
		t.Fatal("the store is none in memory")
	}
	for _, name := range mem.Names() {
		if !strings.HasPrefix(name, "packs/") {
			continue
		}
		body, err := mem.Get(ctx, name, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		body[len(body)/2] ^= 1
		mem.Replace(name, body)
	}
	r.scrub = Scrub{Every: scrubParts * 20 * time.Millisecond, Rate: 100 << 20}
	r.startAgent()
	status := func() ScrubStatus {
		t.Helper()
		st, err := r.agent.Status(ctx)
		if err != nil || st.Scrub == nil {
			t.Fatalf("%+v, %v", st, err)
		}
		return *st.Scrub
	}
	r.until("damage", func() bool { return strings.Contains(status().Problem, "1 damaged") })
	r.stopAgent()
	r.scrub.Every = 365 * 24 * time.Hour
	r.startAgent()
	if st := status(); st.Last.IsZero() || st.After == "" {
		t.Errorf("behind a restart: %+v", st)
	}
	// Stores that are down are said to be so, and cost nothing but the part.
	r.stopAgent()
	r.scrub.Every = scrubParts * 20 * time.Millisecond
	r.stores[2].SetFaults(memstore.Faults{Before: func(context.Context, memstore.Call) error { return objstore.ErrDown }})
	r.startAgent()
	r.until("a store that is down", func() bool { return strings.Contains(status().Problem, "1 stores do not answer") })
}

// What the agent's password does not open any more is not called damage.
func TestScrubUnjudged(t *testing.T) {
	rep := repository.CheckReport{Unjudged: "this and that cannot be judged", Backups: []repository.BackupReport{{Unjudged: true}}}
	if text := found(rep); rep.OK() || text != "this and that cannot be judged. Of the rest nothing was found" {
		t.Errorf("%v, %s", rep.OK(), text)
	}
	rep.Backups = append(rep.Backups, repository.BackupReport{})
	if text := found(rep); !strings.Contains(text, "this and that") || !strings.Contains(text, "1 backups cannot be restored") {
		t.Error(text)
	}
}

// A state of the scrub that makes no sense is no reason not to scrub.
func TestScrubBeginsAnew(t *testing.T) {
	r := testRig(t)
	r.stopAgent()
	cat, err := catalog.Open(t.Context(), filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cat.SetSetting(t.Context(), scrubKey, "{damaged"), cat.Close()); err != nil {
		t.Fatal(err)
	}
	r.scrub = Scrub{Every: scrubParts * 20 * time.Millisecond}
	r.startAgent()
	r.until("a scrub", func() bool {
		st, err := r.agent.Status(t.Context())
		return err == nil && st.Scrub != nil && !st.Scrub.Last.IsZero() && st.Scrub.OK
	})
}
