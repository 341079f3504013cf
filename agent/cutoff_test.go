package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
	"github.com/cairnbackup/cairn/internal/repository"
)

// TestCutOffCommitted: a host that loses the database, and nothing else, while it commits a
// backup has made one: the others find it in the stores and show it, and what the host
// records when it is back changes nothing.
func TestCutOffCommitted(t *testing.T) {
	where := pgtest.Database(t)
	through, proxy := throughProxy(t, where)
	a := hostRig(t, through, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	v := a.disk(ann, nil)
	content := noise(3 << 20)
	a.fill(v, content, 0)
	other := b.disk(bob, nil)
	began, release := a.hold("put", "backups/")
	id := b.backing(ann, v, nil)
	a.await(began)
	proxy.Set(s3test.Trouble{Refuse: true})
	release()
	a.until("the stores have the backup", func() bool {
		pause(ctx, 20*time.Millisecond)
		l, err := b.repo.Backups(ctx)
		return err == nil && slices.ContainsFunc(l, func(x repository.Backup) bool { return x.ID == id && x.State == repository.Available })
	})
	if x, err := b.agent.Backup(ctx, id); err != nil || x.Status != BackupCreating || x.Host != "a" {
		t.Errorf("before it is settled: %+v, %v", x, err)
	}
	if err := b.agent.DeleteBackup(ctx, id); !errors.Is(err, ErrBusy) {
		t.Errorf("delete: %v", err)
	}
	age(t, where, "a")
	b.backedUp(bob, other, nil) // its end wakes the tidying
	b.becomes("backup", id, "available")
	settled, err := b.agent.Backup(ctx, id)
	if err != nil || settled.Host != "b" || settled.BytesRead != int64(len(content)) {
		t.Errorf("settled: %+v, %v", settled, err)
	}
	b.until("its job is settled behind it", func() bool { return b.jobOf(id).State == JobSucceeded })
	n := b.restoring(ann, id, "")
	b.becomes("volume", n, "available")
	b.holds(n, content)

	proxy.Set(s3test.Trouble{})
	a.until("the host is back", func() bool {
		pause(ctx, 20*time.Millisecond)
		st, serr := a.agent.Status(ctx)
		return serr == nil && st.CatalogError == "" && st.Queued+st.Running == 0
	})
	a.backedUp(ann, v, object{"incremental": true, "name": "next"}) // its end wakes the tidying
	if x, err := b.agent.Backup(ctx, id); err != nil || x.Status != BackupAvailable || x.Host != "b" {
		t.Errorf("when the host is back: %+v, %v", x, err)
	}
	a.until("its job is one that succeeded", func() bool {
		pause(ctx, 20*time.Millisecond)
		return b.jobOf(id).State == JobSucceeded
	})
	if r, err := b.agent.RebuildCatalog(ctx); err != nil || r.Found != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// jobOf is the newest job of a backup.
func (r *rig) jobOf(backup string) Job {
	r.Helper()
	l, err := r.agent.Jobs(context.Background(), 100)
	if err != nil {
		r.Fatal(err)
	}
	for _, j := range slices.Backward(l) {
		if j.Backup == backup && j.Kind == "backup" {
			return j
		}
	}
	r.Fatalf("backup %s has no job", backup)
	return Job{}
}

// TestCutOffBriefly: a host that loses the database while it commits a backup, and has it again before the
// others take it to be down, records the backup and that its job succeeded.
func TestCutOffBriefly(t *testing.T) {
	where, proxy := throughProxy(t, pgtest.Database(t))
	a := hostRig(t, where, "a", nil)
	ctx := t.Context()
	v := a.disk(ann, nil)
	a.fill(v, noise(1<<20), 0)
	began, release := a.hold("put", "backups/")
	id := a.backing(ann, v, nil)
	a.await(began)
	proxy.Set(s3test.Trouble{Refuse: true})
	release()
	a.until("the job has ended", func() bool {
		pause(ctx, 20*time.Millisecond)
		st, err := a.agent.Status(ctx)
		return err == nil && st.CatalogError != "" && st.Running == 0
	})
	proxy.Set(s3test.Trouble{})
	a.backedUp(ann, v, object{"name": "next"}) // its end wakes the tidying
	a.becomes("backup", id, "available")
	a.until("its job is one that succeeded", func() bool {
		pause(ctx, 20*time.Millisecond)
		j := a.jobOf(id)
		return j.State == JobSucceeded && len(j.Result) > 0 && j.Error == "" && j.Code == ""
	})
}
