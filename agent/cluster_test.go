package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/repository"
)

func isFault(err error, status int) bool {
	f, ok := errors.AsType[*cinderapi.Fault](err)
	return ok && f.Status == status
}

// age makes a host look as if it had not beaten for long.
func age(t *testing.T, where, host string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	c, err := pgx.Connect(ctx, where)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(ctx, `UPDATE hosts SET beat = beat - $1 WHERE name = $2`, int64(catalog.DownAfter), host)
	if err = errors.Join(err, c.Close(ctx)); err != nil {
		t.Fatal(err)
	}
}

// TestCluster: any agent answers the API for all of them, and what has to be done at a
// volume's host is done there.
func TestCluster(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	v := a.disk(ann, object{"metadata": object{"k": "v"}})
	if got := b.get(root, "volumes/"+v).text("volume", "os-vol-host-attr:host"); got != "a@cairn#cairn" {
		t.Errorf("host %q", got)
	}
	b.refused(404, "could not be found", bob, "GET", "volumes/"+v, nil)
	for _, r := range []*rig{a, b} {
		l, ok := r.get(ann, "volumes").at("volumes").([]any)
		if !ok || len(l) != 1 {
			t.Errorf("volumes at %s: %v", r.host, l)
		}
	}
	b.call(200, ann, "PUT", "volumes/"+v, object{"volume": object{"name": "renamed"}})
	if got := a.get(ann, "volumes/"+v).text("volume", "name"); got != "renamed" {
		t.Errorf("name %q", got)
	}
	b.act(202, ann, "volume", v, "os-extend", object{"new_size": 2})
	b.refused(400, "New size for extend must be greater", ann, "POST", "volumes/"+v+"/action", object{"os-extend": object{"new_size": 2}})
	content := noise(3 << 20)
	a.fill(v, content, 0)

	// A snapshot, and backups of both, asked for at the other host.
	s := b.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v, "name": "before"}}).text("snapshot", "id")
	a.becomes("snapshot", s, "available")
	b.becomes("snapshot", s, "available")
	b.call(200, ann, "PUT", "snapshots/"+s, object{"snapshot": object{"name": "then"}})
	if got := b.get(ann, "snapshots/"+s).text("snapshot", "name"); got != "then" {
		t.Errorf("name of the snapshot %q", got)
	}
	was := append([]byte(nil), content...)
	copy(content, noise(1<<20))
	a.fill(v, content[:1<<20], 0)
	old := b.backedUp(ann, v, object{"snapshot_id": s})
	full := b.backedUp(ann, v, nil)
	x, err := b.agent.Backup(ctx, full)
	if err != nil || x.Host != "a" || x.Project != "a" {
		t.Errorf("%+v, %v", x, err)
	}
	copy(content[2<<20:], noise(1<<16))
	a.fill(v, content[2<<20:][:1<<16], 2<<20)
	incremental := b.backedUp(ann, v, object{"incremental": true})
	if x, err = b.agent.Backup(ctx, incremental); err != nil || x.BytesRead != 1<<16 || x.FullCompareReason != "" {
		t.Errorf("%+v, %v", x, err)
	}

	// Restored at either host.
	for id, want := range map[string][]byte{old: was, incremental: content} {
		n := b.restoring(ann, id, "")
		b.becomes("volume", n, "available")
		b.holds(n, want)
		if got := a.get(root, "volumes/"+n).text("volume", "os-vol-host-attr:host"); got != "b@cairn#cairn" {
			t.Errorf("host of what b restored: %q", got)
		}
		a.call(202, ann, "DELETE", "volumes/"+n, nil)
		a.becomes("volume", n, "gone")
		b.becomes("volume", n, "gone")
	}
	b.restoring(ann, full, v)
	b.becomes("volume", v, "available")
	copy(content[2<<20:], was[2<<20:])
	a.holds(v, content)

	// Canceled from the other host: a backup, and a restore.
	a.fill(v, noise(40<<20), 0)
	began, release := a.hang()
	id := b.backing(ann, v, nil)
	a.await(began)
	if got := b.state("volume", v); got != "backing-up" {
		t.Errorf("the volume is %s", got)
	}
	b.refused(400, "current status is", ann, "POST", "backups", object{"backup": object{"volume_id": v}})
	b.forceDelete(id)
	b.becomes("backup", id, "gone")
	b.becomes("volume", v, "available")
	release()
	id = b.backedUp(ann, v, nil)
	began, release = a.hold("get", "packs/")
	b.restoring(ann, id, v)
	a.await(began)
	b.act(202, root, "backup", id, "os-reset_status", object{"status": "available"})
	b.becomes("volume", v, "error")
	release()
	b.becomes("backup", id, "available")
	b.act(202, root, "volume", v, "os-reset_status", object{"status": "available"})

	// A job is canceled by the command, too.
	a.fill(v, noise(40<<20), 0)
	began, release = a.hang()
	id = a.backing(ann, v, nil)
	a.await(began)
	l, err := b.agent.Jobs(ctx, 1)
	if err != nil || len(l) != 1 || l[0].Backup != id || l[0].Host != "a" {
		t.Fatalf("%+v, %v", l, err)
	}
	if j, cerr := b.agent.CancelJob(ctx, l[0].ID); cerr != nil || j.Host != "a" {
		t.Errorf("%+v, %v", j, cerr)
	}
	b.becomes("backup", id, "error")
	release()

	b.refused(400, "snapshot "+s, ann, "DELETE", "volumes/"+v, nil)

	// It becomes somebody else's: nobody lets in whom it was, with what was told of it before.
	if _, err = a.agent.AssignVolume(ctx, v, "b"); err != nil {
		t.Fatal(err)
	}
	b.refused(404, "Volume "+v, ann, "GET", "volumes/"+v, nil)
	b.get(bob, "volumes/"+v)
	h := &hub{o: Options{Serve: a.serve}, host: "a"}
	before := "a"
	stale := &blockStorage{server: &server{hub: h, serve: plane{a.serve}}, host: "a"}
	if _, err = remoteDeleteVolume.do(stale, ctx, askDelete{whose: whose{&before}, ID: v}); !isFault(err, 404) {
		t.Errorf("deleted as whose it was: %v", err)
	}
	if _, err = remoteDeleteSnapshot.do(stale, ctx, askDelete{whose: whose{&before}, ID: s}); !isFault(err, 404) {
		t.Errorf("its snapshot as well: %v", err)
	}
	if _, err = a.agent.AssignVolume(ctx, v, "a"); err != nil {
		t.Fatal(err)
	}
	b.call(202, ann, "DELETE", "snapshots/"+s, nil)
	b.becomes("snapshot", s, "gone")
	b.call(202, ann, "DELETE", "volumes/"+v, nil)
	b.becomes("volume", v, "gone")
	a.becomes("volume", v, "gone")
}

// TestClusterQuota: hosts count together.
func TestClusterQuota(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	hosts := []*rig{a, b}
	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[int]int{}
	for i := range 30 {
		wg.Go(func() {
			status, _ := hosts[i%2].try(ann, "POST", "volumes", object{"volume": object{"size": 1, "name": strconv.Itoa(i)}})
			mu.Lock()
			defer mu.Unlock()
			got[status]++
		})
	}
	wg.Wait()
	if got[http.StatusAccepted] != 10 || got[http.StatusRequestEntityTooLarge] != 20 {
		t.Errorf("%v", got)
	}
	var volumes []string
	for _, r := range hosts {
		use := r.get(root, "os-quota-sets/a?usage=True")
		if n := use.at("quota_set", "volumes", "in_use"); n != 10.0 {
			t.Errorf("in use as %s has it: %v", r.host, n)
		}
		l, err := r.serve.Volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range l {
			volumes = append(volumes, v.ID)
		}
	}
	if len(volumes) != 10 {
		t.Errorf("%d volumes are there", len(volumes))
	}
	// What fails takes nothing.
	a.call(202, ann, "DELETE", "volumes/"+volumes[0], nil)
	b.becomes("volume", volumes[0], "gone")
	for range 3 {
		if status, answer := b.try(ann, "POST", "volumes", object{"volume": object{"size": 1 << 40}}); status < 400 {
			t.Errorf("%v", answer)
		}
	}
	b.disk(ann, nil)
	b.refused(413, "Maximum number of volumes allowed (10) exceeded", ann, "POST", "volumes", object{"volume": object{"size": 1}})
}

// TestDisabledHost: a host that shall get no work has new volumes made elsewhere, and
// goes on with those that it has.
func TestDisabledHost(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	v := a.disk(ann, nil)
	if err := b.agent.DisableHost(ctx, "a", "its disks are full"); err != nil {
		t.Fatal(err)
	}
	if err := b.agent.DisableHost(ctx, "c", "x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := b.agent.ForgetHost(ctx, "a"); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	hostIs := func(id, want string) {
		t.Helper()
		if got := a.get(root, "volumes/"+id).text("volume", "os-vol-host-attr:host"); got != want+"@cairn#cairn" {
			t.Errorf("volume %s is at %s", id, got)
		}
	}
	hostIs(a.disk(ann, nil), "b")
	id := a.backedUp(ann, v, nil)
	n := a.restoring(ann, id, "")
	a.becomes("volume", n, "available")
	hostIs(n, "b")
	services, ok := a.get(root, "os-services").at("services").([]any)
	if !ok || !strings.Contains(fmt.Sprint(services), "its disks are full") {
		t.Errorf("%v", services)
	}
	if err := b.agent.DisableHost(ctx, "b", "too"); err != nil {
		t.Fatal(err)
	}
	a.refused(503, "no host takes new volumes", ann, "POST", "volumes", object{"volume": object{"size": 1}})
	if err := b.agent.DisableHost(ctx, "a", ""); err != nil {
		t.Fatal(err)
	}
	hostIs(b.disk(ann, nil), "a")
}

// TestClusterAway: what is at a host that is down is shown, and refused.
func TestClusterAway(t *testing.T) {
	usual := callPatience
	callPatience = 2 * time.Second
	t.Cleanup(func() { callPatience = usual }) // when the agents have ended
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	v := a.disk(ann, nil)
	a.fill(v, noise(1<<20), 0)
	id := b.backedUp(ann, v, nil)
	a.stopAgent()
	a.stopAgent = func() {}
	b.refused(503, "does not answer", ann, "POST", "backups", object{"backup": object{"volume_id": v}}) // it is still up by its beat, and nobody takes the call
	age(t, where, "a")
	if got := b.state("volume", v); got != "available" {
		t.Errorf("the volume is %s", got)
	}
	for _, try := range [][2]string{{"POST", "backups"}, {"DELETE", "volumes/" + v}, {"POST", "snapshots"}} {
		body := object{"backup": object{"volume_id": v}}
		if try[1] == "snapshots" {
			body = object{"snapshot": object{"volume_id": v}}
		}
		b.refused(503, "does not answer", ann, try[0], try[1], body)
	}
	n := b.restoring(ann, id, "")
	b.becomes("volume", n, "available")
	b.becomes("backup", id, "available") // a moment later
	b.call(202, ann, "DELETE", "backups/"+id, nil)
	b.becomes("backup", id, "gone")
}

// TestCutOff: a host that is taken to be down while it makes a backup finds it settled:
// the stores' verdict decides, and its own record of the end does not undo that.
func TestCutOff(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	v := a.disk(ann, nil)
	a.fill(v, noise(40<<20), 0)
	began, release := a.hang()
	id := b.backing(ann, v, nil)
	a.await(began)
	other := b.disk(bob, nil)
	var x Backup
	for range 10 { // it beats now and then all the same
		age(t, where, "a")
		b.backedUp(bob, other, nil) // its end wakes the tidying
		var err error
		if x, err = b.agent.Backup(ctx, id); err != nil {
			t.Fatal(err)
		}
		if x.Status == BackupError && !x.Undecided {
			break
		}
		pause(ctx, 200*time.Millisecond)
	}
	if x.Status != BackupError || x.Undecided || x.Host != "b" || !strings.Contains(x.FailReason, "nothing was heard of its host for 1m0s") {
		t.Fatalf("%+v", x)
	}
	release()
	var j Job
	a.until("the end of the job", func() bool {
		l, err := a.agent.Jobs(ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, j = range l {
			if j.Backup == id {
				return j.State == JobFailed && strings.Contains(j.Error, "taken to be down")
			}
		}
		return false
	})
	x, err := a.agent.Backup(ctx, id)
	if err != nil || x.Status != BackupError || x.Undecided {
		t.Errorf("%+v, %v", x, err)
	}
	stored, err := a.repo.Backups(ctx)
	if err != nil || slices.ContainsFunc(stored, func(b repository.Backup) bool { return b.ID == id }) {
		t.Errorf("in the repository: %+v, %v", stored, err)
	}
	a.becomes("volume", v, "available")
	a.settledIDs(v)
	b.call(202, ann, "DELETE", "backups/"+id, nil)
	if _, err = a.agent.Backup(ctx, id); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	b.until("the next beat", func() bool {
		pause(ctx, 20*time.Millisecond) // it may take as long as one waits for anything
		l, err := b.agent.Hosts(ctx)
		return err == nil && !slices.ContainsFunc(l, func(h Host) bool { return !h.Up })
	})
	again := b.backedUp(ann, v, nil)
	a.settledIDs(v, again)
}
