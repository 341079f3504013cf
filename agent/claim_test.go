package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
)

// claimRig is a hub whose servers have catalogs in folders below dir.
func claimRig(t *testing.T, dir string, names ...string) *hub {
	t.Helper()
	h := newHub(Options{NBDDir: t.TempDir()})
	t.Cleanup(func() {
		if err := h.close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range names {
		s, err := h.add(t.Context(), name, filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		s.end = func(error) { close(s.ended) }
	}
	return h
}

func (h *hub) named(name string) *server {
	return h.servers[slices.IndexFunc(h.servers, func(s *server) bool { return s.name == name })]
}

// TestClaim: who has a repository is a matter of the catalogs and of the order.
func TestClaim(t *testing.T) {
	type step struct {
		who, id string
		want    string // in the refusal
		lost    string // who loses it
	}
	for _, c := range []struct {
		name  string
		bound map[string]string
		steps []step
	}{
		{"each its own", nil, []step{{"far", "F", "", ""}, {"default", "D", "", ""}, {"near", "N", "", ""}, {"near", "N", "", ""}}},
		{"the default goes before", nil, []step{{"default", "D", "", ""}, {"far", "D", "repository default, the agent's own", ""}}},
		{"the default's stores are away", map[string]string{"default": "D"}, []step{{"far", "D", "repository default, the agent's own", ""}, {"default", "D", "", ""}}},
		{"a new default takes over", nil, []step{{"far", "D", "", ""}, {"default", "D", "", "far"}, {"default", "D", "", ""}, {"far", "D", "repository default", ""}}},
		{"a new default takes over from one that had it", map[string]string{"near": "D"}, []step{{"near", "D", "", ""}, {"default", "D", "", "near"}}},
		{"nobody has it yet", map[string]string{"near": "D"}, []step{{"default", "D", "", ""}, {"near", "D", "repository default", ""}}},
		{"who had it keeps it", map[string]string{"near": "N"}, []step{{"far", "N", "repository near, which has had them", ""}, {"near", "N", "", ""}, {"far", "F", "", ""}}},
		{"the first of two that had it", map[string]string{"far": "N", "near": "N"}, []step{{"near", "N", "repository far, which has had them", ""}, {"far", "N", "", ""}}},
		{"the first of two new ones", nil, []step{{"far", "N", "", ""}, {"near", "N", "repository far", ""}}},
		{"swapped", map[string]string{"far": "F", "near": "N"}, []step{{"far", "N", "far/catalog.db is of repository F, and", ""}, {"near", "F", "is of repository N, and", ""}}},
		{"a default of other stores", map[string]string{"default": "D"}, []step{{"default", "F", "default/catalog.db is of repository D, and", ""}, {"far", "F", "", ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			names := []string{DefaultRepository, "far", "near"}
			before := claimRig(t, dir, names...)
			for name, id := range c.bound {
				if err := before.named(name).cat.SetSetting(t.Context(), bindingKey, id); err != nil {
					t.Fatal(err)
				}
			}
			h := claimRig(t, dir, names...)
			for i, x := range c.steps {
				lost, err := h.claim(t.Context(), h.named(x.who), x.id)
				var losers []string
				for _, o := range lost {
					losers = append(losers, o.name)
				}
				e, refused := errors.AsType[*Error](err)
				if (err != nil) != (x.want != "") || strings.Join(losers, " ") != x.lost || err != nil && (!refused || e.Code != CodeConflict || !strings.Contains(e.Text, x.want)) {
					t.Errorf("step %d: lost %v, %v", i, losers, err)
				}
			}
			// The next start comes to the same end, whoever is first there.
			again := claimRig(t, dir, names...)
			for _, s := range slices.Backward(again.servers) {
				was := h.named(s.name)
				if was.bound == "" {
					continue
				}
				_, then := h.claim(t.Context(), was, was.bound)
				if _, err := again.claim(t.Context(), s, was.bound); (err == nil) != (then == nil) {
					t.Errorf("%s: %v, and after a start %v", s.name, then, err)
				}
			}
		})
	}
}

// TestTurn: only catalogs that are new are waited for, and not for ever.
func TestTurn(t *testing.T) {
	over, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		name  string
		bound []string
		who   string
		waits []string
	}{
		{"all new", nil, "near", []string{"default", "far"}},
		{"the first waits for nobody", nil, "default", nil},
		{"the default is known", []string{"default"}, "far", nil},
		{"all others are known", []string{"default", "far"}, "near", nil},
		{"who had it waits for a new default only", []string{"near"}, "near", []string{"default"}},
		{"nobody waits for what comes behind", []string{"default"}, "far", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := claimRig(t, t.TempDir(), DefaultRepository, "far", "near")
			for _, name := range c.bound {
				h.named(name).bound = name
			}
			s := h.named(c.who)
			var waits []string
			for _, o := range h.servers {
				if o == s {
					break
				}
				if h.waitsFor(s, o) {
					waits = append(waits, o.name)
				}
			}
			if !slices.Equal(waits, c.waits) {
				t.Errorf("waits for %v, want %v", waits, c.waits)
			}
			h.turn(over, s) // returns
			for _, name := range c.waits {
				close(h.named(name).tried)
			}
			h.turn(t.Context(), s) // returns
		})
	}
}

// runWith starts an agent with a state folder of this name.
func (r *rig) runWith(state string, open Opener, others ...Repo) {
	r.Helper()
	r.stopAgent()
	r.stopAgent = r.start("agent", func(ctx context.Context, ready func()) error {
		return Run(ctx, Options{
			State: filepath.Join(r.dir, state), Socket: filepath.Join(r.dir, "a"), NBDDir: filepath.Join(r.dir, "n"),
			Open: open, Others: others, Serve: r.serve, KeepPriority: true,
		}, ready)
	})
}

// whose waits until the repositories say so: the value is who has a name's stores
// instead of it, empty if it is open.
func (r *rig) whose(want map[string]string) {
	r.Helper()
	var got []string
	for range 1000 {
		got = nil
		for name, other := range want {
			st, err := r.agent.Repository(name).Status(context.Background())
			if err != nil {
				r.Fatal(err)
			}
			said := st.Repository.Error
			if other == "" && said != "" || other != "" && !strings.Contains(said, fmt.Sprintf("its stores are those of the repository %s, ", other)) {
				got = append(got, fmt.Sprintf("%s: %q", name, said))
			}
		}
		if got == nil {
			return
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	r.Fatal(strings.Join(got, "\n"))
}

// often makes repositories be tried again soon.
func often(t *testing.T) {
	t.Helper()
	was := reopenEvery
	reopenEvery = 10 * time.Millisecond
	t.Cleanup(func() { reopenEvery = was })
}

// TestSameStoresFirstStart: a new name is not opened before the default repository
// was tried, however long that takes.
func TestSameStoresFirstStart(t *testing.T) {
	r := testRig(t)
	p := another(t, "p")
	opened := make(chan struct{}, 2)
	slow := func(ctx context.Context) (*repository.Repository, error) {
		select {
		case <-opened: // by another name, which has it all to itself
			pause(ctx, 100*time.Millisecond)
		case <-time.After(300 * time.Millisecond):
		}
		return p.open(ctx)
	}
	quick := func(ctx context.Context) (*repository.Repository, error) {
		rep, err := p.open(ctx)
		select {
		case opened <- struct{}{}:
		default:
		}
		return rep, err
	}
	r.runWith("new", slow, Repo{Name: "copy", Open: quick})
	r.whose(map[string]string{DefaultRepository: "", "copy": DefaultRepository})
	_, err := r.agent.Repository("copy").CreateBackup(t.Context(), CreateBackup{Volume: "web"})
	if err == nil || !strings.Contains(err.Error(), "name other stores for copy or take it out of the settings") {
		t.Error(err)
	}
	cat, err := catalog.Open(t.Context(), filepath.Join(r.dir, "new", "repositories", "copy", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := cat.Setting(t.Context(), bindingKey)
	if err = errors.Join(err, cat.Close()); err != nil || id != "" {
		t.Errorf("the other name had the repository %s meanwhile, %v", id, err)
	}
}

// TestSameStoresDefaultAway: what the default repository's catalog is bound to is
// nobody else's, also while its stores are away.
func TestSameStoresDefaultAway(t *testing.T) {
	often(t)
	r := testRig(t)
	p := another(t, "p")
	r.runWith("new", p.open)
	r.whose(map[string]string{DefaultRepository: ""})
	var away atomic.Bool
	away.Store(true)
	open := func(ctx context.Context) (*repository.Repository, error) {
		if away.Load() {
			return nil, errors.New("its disks are away")
		}
		return p.open(ctx)
	}
	r.runWith("new", open, Repo{Name: "copy", Open: p.open})
	r.whose(map[string]string{"copy": DefaultRepository})
	if st, err := r.agent.Status(t.Context()); err != nil || !strings.Contains(st.Repository.Error, "its disks are away") {
		t.Errorf("%+v, %v", st, err)
	}
	away.Store(false)
	r.whose(map[string]string{DefaultRepository: "", "copy": DefaultRepository})
}

// TestSameStoresNamed: of two names, that has them which had them.
func TestSameStoresNamed(t *testing.T) {
	often(t)
	r := testRig(t)
	own, p := another(t, "own"), another(t, "p")
	r.runWith("new", own.open, Repo{Name: "b", Open: p.open})
	r.whose(map[string]string{DefaultRepository: "", "b": ""})
	r.runWith("new", own.open, Repo{Name: "a", Open: p.open}, Repo{Name: "b", Open: p.open})
	r.whose(map[string]string{DefaultRepository: "", "a": "b", "b": ""})
}

// TestDefaultTakesOver: a default repository whose catalog is new turns out to be
// what another name has opened meanwhile. It gets it, with all that was made there.
func TestDefaultTakesOver(t *testing.T) {
	often(t)
	r := testRig(t)
	p := another(t, "p")
	var away atomic.Bool
	away.Store(true)
	open := func(ctx context.Context) (*repository.Repository, error) {
		if away.Load() {
			return nil, errors.New("its disks are away")
		}
		return p.open(ctx)
	}
	r.runWith("new", open, Repo{Name: "far", Open: p.open})
	r.whose(map[string]string{"far": ""})
	v, shadow := r.volume("web", 4<<20), make([]byte, 4<<20)
	r.put(v, shadow, noise(3<<16), 0)
	first := r.in("far", CreateBackup{Volume: "web"})
	far := r.agent.Repository("far")
	guest, err := far.Export(t.Context(), Export{Ref: first.ID, Name: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	began, release := hangPacks(p.stores)
	defer release()
	r.put(v, shadow, noise(1<<16), 0)
	committing, err := far.CreateBackup(t.Context(), CreateBackup{Volume: "web"})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	// The first pack is put while the backup still reads: until it commits it can be canceled.
	r.until("the commit", func() bool {
		b, berr := far.Backup(t.Context(), committing.Backup)
		return berr == nil && b.Undecided
	})
	queued, err := far.CreateBackup(t.Context(), CreateBackup{Volume: "web"})
	if err != nil {
		t.Fatal(err)
	}
	away.Store(false)
	r.until("the default repository", func() bool {
		st, serr := r.agent.Status(t.Context())
		return serr == nil && strings.Contains(st.Repository.Error, "waits for the jobs of repository far")
	})
	release()
	r.whose(map[string]string{DefaultRepository: "", "far": DefaultRepository})
	if j, jerr := far.Job(t.Context(), committing.ID); jerr != nil || j.State != JobSucceeded {
		t.Errorf("%+v, %v", j, jerr)
	}
	if j, jerr := far.Job(t.Context(), queued.ID); jerr != nil || j.State != JobFailed || Code(j.Code) != CodeConflict || !strings.Contains(j.Error, "its stores are those of the repository default") {
		t.Errorf("%+v, %v", j, jerr)
	}
	if _, err = far.CreateBackup(t.Context(), CreateBackup{Volume: "web"}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "repository far is not open any more") {
		t.Error(err)
	}
	if l, lerr := r.agent.Backups(t.Context()); lerr != nil || len(l) != 2 || l[0].ID != first.ID || l[1].ID != committing.Backup {
		t.Errorf("%+v, %v", l, lerr)
	}
	if got := r.read(guest.URI); len(got) != len(shadow) {
		t.Errorf("%d bytes are exported", len(got))
	}
	holds(t, p.opened(t), r.backup(CreateBackup{Volume: "web"}), shadow)
	away.Store(true)
	r.runWith("new", open, Repo{Name: "far", Open: p.open})
	r.whose(map[string]string{"far": DefaultRepository})
}
