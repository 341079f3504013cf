package agent

import (
	"context"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// queues are engines whose jobs the test begins and ends itself.
type queues struct {
	*testing.T
	pool    *pool
	running []*task
	began   []string // jobs, by their kind
}

func newQueues(t *testing.T, limit, engines int) *queues {
	t.Helper()
	q := &queues{T: t, pool: newPool(limit)}
	for i := range engines {
		cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), fmt.Sprint(i, ".db")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if cerr := cat.Close(); cerr != nil {
				t.Error(cerr)
			}
		})
		newEngine(cat, slog.New(slog.DiscardHandler), q.pool, func() {})
	}
	return q
}

// submit queues a job. Its kind is what began tells.
func (q *queues) submit(e int, kind, volume string) Job {
	q.Helper()
	j, err := q.pool.engines[e].submit(q.Context(), Job{Kind: kind, VolumeID: volume}, nil)
	if err != nil {
		q.Fatal(err)
	}
	return j
}

// begin lets all jobs begin that may: as engines that run, each looks when it was
// woken.
func (q *queues) begin() {
	for woken := true; woken; {
		woken = false
		for _, e := range q.pool.engines {
			select {
			case <-e.wake:
				woken = true
				for t := e.next(); t != nil; t = e.next() {
					q.running, q.began = append(q.running, t), append(q.began, t.job.Kind)
				}
			default:
			}
		}
	}
}

// end ends the running job with this index.
func (q *queues) end(i int) {
	t := q.running[i]
	q.running = slices.Delete(q.running, i, i+1)
	t.e.finish(q.Context(), t, nil, nil)
}

// TestPoolNobodyWaits: any jobs of some repositories hang for ever, and the next of
// another begins at once as long as there is a slot for each; with fewer, as long as
// one is free.
func TestPoolNobodyWaits(t *testing.T) {
	for round := range uint64(40) {
		rng := mrand.New(mrand.NewPCG(round, 3))
		limit, n := 1+rng.IntN(5), 1+rng.IntN(4)
		q := newQueues(t, limit, n)
		for step := range 120 {
			switch x := rng.IntN(10); {
			case x < 5:
				volume := ""
				if rng.IntN(2) == 0 {
					volume = fmt.Sprint("v", rng.IntN(4))
				}
				q.submit(rng.IntN(n), []string{catalog.BackupJob, catalog.RestoreJob}[rng.IntN(2)], volume)
			case x < 9 && len(q.running) > 0:
				q.end(rng.IntN(len(q.running)))
			default:
				e := q.pool.engines[rng.IntN(n)]
				if l := e.tasks; len(l) > 0 {
					if _, err := e.cancelJob(t.Context(), l[rng.IntN(len(l))].job.ID); err != nil {
						t.Fatal(err)
					}
				}
			}
			q.begin()
			q.check(limit, fmt.Sprintf("round %d, step %d, %d slots, %d repositories", round, step, limit, n))
		}
	}
}

func (q *queues) check(limit int, where string) {
	q.Helper()
	used, without := 0, 0
	var slotted []*task
	for _, e := range q.pool.engines {
		slots := e.slotsLocked()
		used += slots
		if slots == 0 {
			without++
		}
		if slots > 1 && limit < len(q.pool.engines) {
			q.Fatalf("%s: one has %d slots", where, slots)
		}
		for _, t := range e.tasks {
			if t.slot {
				slotted = append(slotted, t)
			}
		}
	}
	for i, t := range slotted {
		for _, o := range slotted[:i] {
			if v := t.job.VolumeID; v != "" && v == o.job.VolumeID && (t.e == o.e || t.job.Kind == catalog.RestoreJob || o.job.Kind == catalog.RestoreJob) {
				q.Fatalf("%s: two jobs of volume %s: %s and %s", where, v, t.job.Kind, o.job.Kind)
			}
		}
	}
	if used > limit {
		q.Fatalf("%s: %d jobs at once", where, used)
	}
	if limit >= len(q.pool.engines) && limit-used < without {
		q.Fatalf("%s: %d slots are free for %d repositories that have none", where, limit-used, without)
	}
	for i, e := range q.pool.engines {
		ready := e.readyLocked()
		switch slots := e.slotsLocked(); {
		case ready == nil:
		case slots == 0 && used < limit:
			q.Fatalf("%s: repository %d waits, and a slot is free", where, i)
		case slots > 0 && limit-used > without:
			q.Fatalf("%s: repository %d waits, and a slot is free that nobody else needs", where, i)
		}
	}
}

// TestPoolTurns: what becomes free goes to who had nothing for longest.
func TestPoolTurns(t *testing.T) {
	for _, c := range []struct {
		name           string
		limit, engines int
		jobs           string // of the repositories a, b, c, in this order
		want           string
	}{
		{"one repository", 1, 1, "a1 a2 a3", "a1 a2 a3"},
		{"one slot", 1, 2, "a1 a2 a3 b1 b2", "a1 b1 a2 b2 a3"},
		{"fewer slots than repositories", 2, 3, "a1 a2 b1 b2 c1 c2", "a1 b1 c1 a2 b2 c2"},
		{"two slots", 2, 2, "a1 a2 a3 b1", "a1 b1 a2 a3"},
		{"a slot more", 3, 2, "a1 a2 a3 a4 b1 b2", "a1 a2 b1 a3 b2 a4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newQueues(t, c.limit, c.engines)
			for kind := range strings.FieldsSeq(c.jobs) {
				q.submit(int(kind[0]-'a'), kind, "")
				q.begin()
			}
			for len(q.running) > 0 {
				q.end(0)
				q.begin()
			}
			if got := strings.Join(q.began, " "); got != c.want {
				t.Errorf("began: %s, want: %s", got, c.want)
			}
		})
	}
}

// TestStoppedKeepsNoSlot: for a repository whose engine has ended no slot is kept.
func TestStoppedKeepsNoSlot(t *testing.T) {
	q := newQueues(t, 2, 2)
	q.submit(0, "a1", "")
	q.submit(0, "a2", "")
	q.begin()
	q.pool.engines[1].stop(errStopping)
	q.begin()
	if got := strings.Join(q.began, " "); got != "a1 a2" {
		t.Errorf("began: %s", got)
	}
}

// TestHangingRepository: all stores of a repository hang, it has more jobs than may
// run at once, and those of the other run.
func TestHangingRepository(t *testing.T) {
	r := testRig(t)
	far := another(t, "far")
	far.call = time.Hour
	r.with(Repo{Name: "far", Open: far.open})
	shadow := make([]byte, 4<<20)
	for i := range 4 {
		r.put(r.volume(fmt.Sprint("v", i), int64(len(shadow))), shadow, noise(1<<16), 0)
	}
	began, release := hangPacks(far.stores)
	defer release()
	var jobs []Job
	other := r.agent.Repository("far")
	for i := range 3 {
		j, err := other.CreateBackup(t.Context(), CreateBackup{Volume: fmt.Sprint("v", i)})
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
	}
	<-began
	patience, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 3 {
		j, err := r.agent.CreateBackup(patience, CreateBackup{Volume: "v3", Auto: true})
		if err != nil {
			t.Fatal(err)
		}
		if j, err = r.agent.WaitJob(patience, j.ID, nil); err != nil || j.State != JobSucceeded {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	if j, err := other.Job(t.Context(), jobs[0].ID); err != nil || j.State != JobRunning {
		t.Errorf("%+v, %v", j, err)
	}
	release()
	for _, j := range jobs {
		if end, err := other.WaitJob(context.Background(), j.ID, nil); err != nil || end.State != JobSucceeded {
			t.Errorf("%+v, %v", end, err)
		}
	}
}

// TestVolumeOfSeveral: a backup of a volume to stores that hang does not keep the
// backup to others waiting, and both are what the volume had at their beginning. A
// restore has the volume to itself.
func TestVolumeOfSeveral(t *testing.T) {
	r := testRig(t)
	far := another(t, "far")
	far.call = time.Hour
	r.with(Repo{Name: "far", Open: far.open})
	v, shadow := r.volume("web", 8<<20), make([]byte, 8<<20)
	r.put(v, shadow, noise(3<<16), 0)
	firstFar := r.in("far", CreateBackup{Volume: "web"})
	r.put(v, shadow, noise(1<<16), 1<<20)
	began, release := hangPacks(far.stores)
	defer release()
	other := r.agent.Repository("far")
	hanging, err := other.CreateBackup(t.Context(), CreateBackup{Volume: "web", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	atFar := slices.Clone(shadow)
	patience, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := func(j Job, jerr error) Job {
		t.Helper()
		if jerr == nil {
			j, jerr = r.agent.WaitJob(patience, j.ID, nil)
		}
		if jerr != nil || j.State != JobSucceeded {
			t.Fatalf("%+v, %v", j, jerr)
		}
		return j
	}
	for i := range int64(2) {
		r.put(v, shadow, noise(1<<16), 2<<20+i<<17)
		j := done(r.agent.CreateBackup(patience, CreateBackup{Volume: "web", Auto: true}))
		b, berr := r.agent.Backup(t.Context(), j.Backup)
		if berr != nil || i > 0 && (b.BytesRead != 1<<16 || b.FullCompareReason != "") {
			t.Errorf("%+v, %v", b, berr)
		}
		r.same(b, shadow)
	}
	restore, err := r.agent.Restore(t.Context(), Restore{Backup: firstBackup(t, r), Volume: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if j, jerr := r.agent.Job(t.Context(), restore.ID); jerr != nil || j.State != JobQueued {
		t.Errorf("a restore beside a backup: %+v, %v", j, jerr)
	}
	release()
	if j, jerr := other.WaitJob(patience, hanging.ID, nil); jerr != nil || j.State != JobSucceeded {
		t.Fatalf("%+v, %v", j, jerr)
	}
	b, err := other.Backup(t.Context(), hanging.Backup)
	if err != nil || b.Parent != firstFar.ID || b.BytesRead != 1<<16 || b.FullCompareReason != "" {
		t.Errorf("%+v, %v", b, err)
	}
	holds(t, far.opened(t), b, atFar)
	done(restore, nil)
}

func firstBackup(t *testing.T, r *rig) string {
	t.Helper()
	l, err := r.agent.Backups(t.Context())
	if err != nil || len(l) == 0 {
		t.Fatal(l, err)
	}
	return l[0].ID
}
