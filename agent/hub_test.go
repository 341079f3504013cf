package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repocopy"
	"github.com/cairnbackup/cairn/internal/repository"
)

// place is where another repository is.
type place struct {
	stores []*memstore.Faulty
	mem    []objstore.Store
	call   time.Duration // that a store may take for an answer
}

// another makes a repository on three stores.
func another(t *testing.T, name string) *place {
	t.Helper()
	p := &place{call: 2 * time.Second}
	for i := range 3 {
		f := memstore.WithFaults(memstore.New(fmt.Sprintf("%s%d", name, i)), memstore.Faults{})
		p.stores, p.mem = append(p.stores, f), append(p.mem, f)
	}
	if _, err := repository.Init(t.Context(), repository.InitOptions{Stores: p.mem, Data: 2, Parity: 1, Password: []byte("other"), KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) open(ctx context.Context) (*repository.Repository, error) {
	return repository.Open(ctx, repository.Options{Stores: p.mem, Password: []byte("other"), Agent: "test", Timing: repository.Timing{Call: p.call}})
}

func (p *place) opened(t *testing.T) *repository.Repository {
	t.Helper()
	r, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (p *place) down(down bool) {
	for _, s := range p.stores {
		s.SetDown(down)
	}
}

// with restarts the agent of a rig with more repositories.
func (r *rig) with(others ...Repo) {
	r.Helper()
	r.stopAgent()
	r.others = others
	r.startAgent()
}

// in makes a backup in one of the repositories.
func (r *rig) in(repo string, req CreateBackup) Backup {
	r.Helper()
	was := r.agent
	defer func() { r.agent = was }()
	r.agent = r.agent.Repository(repo)
	return r.backup(req)
}

func holds(t *testing.T, r *repository.Repository, b Backup, want []byte) {
	t.Helper()
	img, err := r.Image(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, img.Size())
	if err := errors.Join(img.ReadAt(t.Context(), got, 0), img.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("backup %s differs", b.ID)
	}
}

// TestSeveralRepositories backs one volume up to three repositories in any order:
// each incremental has all changes since the last one of its own repository, and
// reads no more.
func TestSeveralRepositories(t *testing.T) {
	r := testRig(t)
	near, far := another(t, "near"), another(t, "far")
	r.with(Repo{Name: "far", Open: far.open}, Repo{Name: "near", Open: near.open})
	repos := map[string]*repository.Repository{DefaultRepository: r.repo, "near": near.opened(t), "far": far.opened(t)}
	const size = 20 << 20
	v, shadow := r.volume("web", size), make([]byte, size)
	rng := mrand.New(mrand.NewPCG(7, 7))
	dirty := map[string]map[int64]bool{DefaultRepository: nil, "near": nil, "far": nil} // since its last backup
	last := map[string][]Backup{}
	for round := range 30 {
		for range 1 + rng.IntN(4) {
			block := rng.Int64N(size >> 16)
			r.put(v, shadow, noise(1+rng.IntN(60000)), block<<16)
			for _, d := range dirty {
				if d != nil {
					d[block] = true
				}
			}
		}
		name := []string{DefaultRepository, "near", "far"}[rng.IntN(3)]
		before := dirty[name]
		b := r.in(name, CreateBackup{Volume: "web", Auto: true})
		holds(t, repos[name], b, shadow)
		if before != nil && (!b.Incremental || b.FullCompareReason != "" || b.BytesRead != int64(len(before))<<16 || b.Parent != last[name][len(last[name])-1].ID) {
			t.Fatalf("round %d: backup to %s of %d changed blocks: %+v", round, name, len(before), b)
		}
		dirty[name], last[name] = map[int64]bool{}, append(last[name], b)
	}
	var kept []Backup
	for _, l := range last {
		kept = append(kept, l[max(0, len(l)-keepCheckpoints):]...)
	}
	slices.SortFunc(kept, func(a, b Backup) int { return a.Created.Compare(b.Created) })
	r.settled("web", kept...)
	for name := range repos {
		l, err := r.agent.Repository(name).Backups(t.Context())
		if err != nil || len(l) != len(last[name]) {
			t.Errorf("%s lists %d backups, want %d: %v", name, len(l), len(last[name]), err)
		}
	}
}

// TestUnknownRepository: the sentence says which there are.
func TestUnknownRepository(t *testing.T) {
	r := testRig(t)
	_, err := r.agent.Repository("fra").Backups(t.Context())
	if !errors.Is(err, ErrNotFound) || err.Error() != `the agent has no repository "fra": it has default` {
		t.Error(err)
	}
	far := another(t, "far")
	r.with(Repo{Name: "far", Open: far.open})
	_, err = r.agent.Repository("fra").CreateBackup(t.Context(), CreateBackup{Volume: "web"})
	if !errors.Is(err, ErrNotFound) || err.Error() != `the agent has no repository "fra": it has default, far` {
		t.Error(err)
	}
	if _, err = r.agent.Repository("default").Backups(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"default", "", "a/b", "..", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"} {
		if err := CheckRepository(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// TestRepositoryDown: one repository cannot be opened when the agent starts, which
// is in nobody's way. When its stores are back it is, and goes on where it was.
func TestRepositoryDown(t *testing.T) {
	was := reopenEvery
	reopenEvery = 20 * time.Millisecond
	t.Cleanup(func() { reopenEvery = was })
	r := testRig(t)
	far := another(t, "far")
	r.with(Repo{Name: "far", Open: far.open})
	v, shadow := r.volume("web", 8<<20), make([]byte, 8<<20)
	r.put(v, shadow, noise(3<<16), 0)
	first := r.in("far", CreateBackup{Volume: "web"})
	if _, err := r.agent.Repository("far").Export(t.Context(), Export{Ref: first.ID, Name: "guest"}); err != nil {
		t.Fatal(err)
	}
	far.down(true)
	r.with(Repo{Name: "far", Open: far.open})
	r.put(v, shadow, noise(1<<16), 5<<16)
	r.same(r.backup(CreateBackup{Volume: "web"}), shadow)
	r.put(v, shadow, noise(1<<16), 6<<16)
	for range 3 { // more than one repository keeps
		r.same(r.backup(CreateBackup{Volume: "web", Incremental: true}), shadow)
	}
	other := r.agent.Repository("far")
	if _, err := other.CreateBackup(t.Context(), CreateBackup{Volume: "web", Auto: true}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "repository far is not open") {
		t.Error(err)
	}
	if err := other.DeleteBackup(t.Context(), first.ID); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if l, err := other.Backups(t.Context()); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if _, err := r.agent.CreateVolume(t.Context(), CreateVolume{Name: "guest", Size: 1 << 20}); !errors.Is(err, ErrConflict) {
		t.Errorf("the name of an export that is not served: %v", err)
	}
	st, err := r.agent.Status(t.Context())
	if err != nil || st.Repository.Error != "" || len(st.Others) != 1 || st.Others[0].Repository.Error == "" || st.Others[0].Backups != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	far.down(false)
	r.until("the repository", func() bool {
		st, serr := other.Status(t.Context())
		return serr == nil && st.Repository.Error == "" && st.Repository.ID != ""
	})
	b := r.in("far", CreateBackup{Volume: "web", Incremental: true})
	if b.Parent != first.ID || b.FullCompareReason != "" || b.BytesRead != 2<<16 {
		t.Errorf("%+v", b)
	}
	holds(t, far.opened(t), b, shadow)
	r.until("the export", func() bool {
		l, lerr := other.Exports(t.Context())
		return lerr == nil && len(l) == 1 && l[0].Error == ""
	})
}

// TestDefaultDown: the default repository is like the others when there are some.
func TestDefaultDown(t *testing.T) {
	r := testRig(t)
	r.stopAgent()
	far := another(t, "far")
	r.stopAgent = r.start("agent", func(ctx context.Context, ready func()) error {
		return Run(ctx, Options{
			State: filepath.Join(r.dir, "agent"), Socket: filepath.Join(r.dir, "a"), NBDDir: filepath.Join(r.dir, "n"), Serve: r.serve, KeepPriority: true,
			Open:   func(context.Context) (*repository.Repository, error) { return nil, errors.New("its disk is away") },
			Others: []Repo{{Name: "far", Open: far.open}, {Name: "twice", Open: far.open}},
		}, ready)
	})
	v, shadow := r.volume("web", 4<<20), make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<16), 0)
	if _, err := r.agent.CreateBackup(t.Context(), CreateBackup{Volume: "web"}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "its disk is away") {
		t.Error(err)
	}
	if e, err := r.agent.Export(t.Context(), Export{Ref: "web"}); err != nil || e.Kind != "volume" {
		t.Error(e, err)
	}
	r.whose(map[string]string{"far": "", "twice": "far"})
	holds(t, far.opened(t), r.in("far", CreateBackup{Volume: "web"}), shadow)
}

// TestCopiedBackup: a backup and its copy have one checkpoint, from which both
// repositories start; it goes with the last of them that needs it.
func TestCopiedBackup(t *testing.T) {
	r := testRig(t)
	far := another(t, "far")
	v, shadow := r.volume("web", 8<<20), make([]byte, 8<<20)
	r.put(v, shadow, noise(3<<16), 0)
	first := r.backup(CreateBackup{Volume: "web"})
	b, err := r.repo.Backup(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	copied := far.opened(t)
	if rs, cerr := repocopy.Run(t.Context(), r.repo, copied, []repository.Backup{b}, repocopy.Options{}); cerr != nil || rs[0].State != repocopy.Copied {
		t.Fatal(rs, cerr)
	}
	r.with(Repo{Name: "far", Open: far.open})
	r.put(v, shadow, noise(1<<16), 9<<16)
	if err = r.agent.DeleteBackup(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	r.settled("web", first) // the copy's
	two := r.in("far", CreateBackup{Volume: "web", Incremental: true})
	if two.Parent != first.ID || two.FullCompareReason != "" || two.BytesRead != 1<<16 {
		t.Errorf("%+v", two)
	}
	holds(t, copied, two, shadow)
	if err = r.agent.Repository("far").DeleteBackup(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	r.settled("web", two)
}

// TestPool: engines share the number of jobs and the volumes.
func TestPool(t *testing.T) {
	p := newPool(2)
	var engines []*engine
	var end []func()
	for range 3 {
		cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
		if err != nil {
			t.Fatal(err)
		}
		engines = append(engines, newEngine(cat, slog.New(slog.DiscardHandler), p, func() {}))
		end = append(end, func() {
			if err := cat.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	for _, e := range engines {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { e.run(ctx); close(done) }()
		end = append(end, func() { cancel(); <-done })
	}
	defer func() {
		for _, f := range slices.Backward(end) {
			f()
		}
	}()
	var running, most, same atomic.Int64
	var jobs []Job
	for i := range 12 {
		shared := i%2 == 0
		j := Job{VolumeID: fmt.Sprint("own ", i)}
		if shared {
			j.VolumeID = "shared"
		}
		j, err := engines[i%3].submit(t.Context(), j, func(context.Context, *task) (any, error) {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			if shared && same.Add(1) > 1 {
				t.Error("two jobs of one volume at once")
			}
			time.Sleep(3 * time.Millisecond)
			if shared {
				same.Add(-1)
			}
			running.Add(-1)
			return nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
	}
	for i, j := range jobs {
		if got := engines[i%3].wait(t, j.ID); got.State != JobSucceeded {
			t.Errorf("%+v", got)
		}
	}
	if n := most.Load(); n != 2 {
		t.Errorf("%d jobs ran at once", n)
	}
}

// TestBrokenRepository: the state of one repository cannot be opened. The others work,
// and drop no checkpoint, as nobody knows which it needs.
func TestBrokenRepository(t *testing.T) {
	r := testRig(t)
	far := another(t, "far")
	r.with(Repo{Name: "far", Open: far.open})
	v, shadow := r.volume("web", 4<<20), make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<16), 0)
	first := r.in("far", CreateBackup{Volume: "web"})
	file := filepath.Join(r.dir, "agent", "repositories", "far", "catalog.db")
	r.stopAgent()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(file, bytes.Repeat([]byte("garbage "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	made := []Backup{first}
	for range keepCheckpoints + 1 {
		r.put(v, shadow, noise(1<<16), 1<<20)
		b := r.backup(CreateBackup{Volume: "web", Auto: true})
		r.same(b, shadow)
		made = append(made, b)
	}
	const want = "repository far cannot be used, as its state in "
	other := r.agent.Repository("far")
	if _, err = other.Backups(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
	st, err := r.agent.Status(t.Context())
	if err != nil || len(st.Others) != 1 || !strings.Contains(st.Others[0].Repository.Error, want) {
		t.Errorf("%+v, %v", st, err)
	}
	r.settled("web", made...)
	r.stopAgent()
	if err = os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	r.settled("web", append(made[:1:1], made[2:]...)...)
	b := r.in("far", CreateBackup{Volume: "web", Incremental: true})
	if b.Parent != first.ID || b.FullCompareReason != "" || b.BytesRead != 1<<16 {
		t.Errorf("%+v", b)
	}
	holds(t, far.opened(t), b, shadow)
}
