package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/serve"
)

func TestSightsDiffer(t *testing.T) {
	settled := sight{Epoch: 3, Mark: "m"}
	for what, x := range map[string]struct {
		was, now sights
		why      string
	}{
		"none":           {nil, nil, ""},
		"the same":       {sights{"b": settled}, sights{"b": settled}, ""},
		"opened since":   {sights{"b": settled}, sights{"b": {Epoch: 4, Mark: "m"}}, "opened"},
		"made again":     {sights{"b": settled}, sights{"b": {Epoch: 3, Mark: "n"}}, "opened"},
		"open now":       {sights{"b": settled}, sights{"b": {Epoch: 3, Mark: "m", Open: true}}, "has it open"},
		"open then":      {sights{"b": {Epoch: 3, Mark: "m", Open: true}}, sights{"b": settled}, "had it open"},
		"open all along": {sights{"b": {Epoch: 3, Mark: "m", Open: true}}, sights{"b": {Epoch: 3, Mark: "m", Open: true}}, "has it open"},
		"silent now":     {sights{"b": settled}, sights{"b": {Unknown: true}}, "did not say"},
		"silent twice":   {sights{"b": {Unknown: true}}, sights{"b": {Unknown: true}}, "did not say"},
		"new":            {nil, sights{"b": {Mark: "m"}}, "too since"},
		"gone":           {sights{"b": settled}, nil, "no more"},
		"the second":     {sights{"a": settled, "b": settled}, sights{"a": settled, "b": {Epoch: 4, Mark: "m"}}, "opened"},
	} {
		d, ok := differ(x.was, x.now)
		if ok != (x.why != "") || !strings.Contains(d.why, x.why) || ok && d.host != "b" {
			t.Errorf("%s: %+v", what, d)
		}
	}
}

// TestOwnerEpoch: what another host writes to a medium that two have as a volume is never
// missed by an incremental, though the tracker knows nothing of it. The medium is one
// file for each host here, which the test keeps alike.
func TestOwnerEpoch(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	id, shadow := uuid.NewString(), noise(4<<20)
	lun := func(r *rig) string { return filepath.Join(r.dir, "lun") }
	volumeAt := func(r *rig) Volume {
		t.Helper()
		if err := os.WriteFile(lun(r), shadow, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := r.serve.CreateVolume(ctx, serve.CreateVolume{ID: id, Name: "web", File: lun(r)})
		if err != nil {
			t.Fatal(err)
		}
		r.told(id)
		return v
	}
	// write is a write by one host that shows at the other, and leaves no trace there.
	write := func(r, other *rig, v Volume, off int64) {
		t.Helper()
		p := noise(1 << 16)
		r.put(v, shadow, p, off)
		st, err := os.Stat(lun(other))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(lun(other), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(p, off)
		if err = errors.Join(err, f.Close(), os.Chtimes(lun(other), time.Time{}, st.ModTime())); err != nil {
			t.Fatal(err)
		}
	}
	incremental := func(r *rig, reason string) Backup {
		t.Helper()
		got := r.backup(CreateBackup{Volume: "web", Auto: true})
		if !strings.Contains(got.FullCompareReason, reason) || (reason == "") != (got.FullCompareReason == "") {
			t.Errorf("at %s: compared because of %q, want %q", r.host, got.FullCompareReason, reason)
		}
		r.same(got, shadow)
		return got
	}
	v := volumeAt(a)
	a.backup(CreateBackup{Volume: "web"})
	a.put(v, shadow, noise(1<<16), 1<<20)
	if got := incremental(a, ""); got.BytesRead != 1<<16 {
		t.Errorf("%+v", got)
	}
	w := volumeAt(b)
	incremental(a, "host b has the volume too since then")
	write(a, b, v, 1<<20)
	incremental(a, "")
	write(b, a, w, 2<<20)
	incremental(a, "host b opened it for writing since then")
	incremental(a, "")
	incremental(b, "the checkpoint of backup")
	write(a, b, v, 3<<20)
	incremental(b, "host a opened it for writing since then")

	// While b writes a leaves it alone, by the command and by the API.
	c := b.dial(w.URI)
	if _, err := a.agent.CreateBackup(ctx, CreateBackup{Volume: "web"}); err != nil {
		t.Fatal(err)
	}
	a.until("the end of the backup", func() bool {
		l, err := a.agent.Jobs(ctx, 1)
		return err == nil && l[0].State == JobFailed && strings.Contains(l[0].Error, "open for writing at host b")
	})
	b.told(id)
	if got := a.state("volume", id); got != "in-use" {
		t.Errorf("the volume is %s", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	b.idle("web")
	b.told(id)
	// b was open for writing since the last checkpoint of a.
	incremental(a, "host b opened it for writing since then")

	// b does not answer: nobody knows.
	b.stopServe()
	b.stopServe = func() {}
	got := incremental(a, "did not say")
	if !strings.Contains(got.Warning, "host b, which has the volume too, did not say") {
		t.Errorf("%+v", got)
	}
	b.startServe()
	incremental(a, "did not say") // then
	incremental(a, "")
	// b has it no more.
	if err := b.agent.DeleteVolume(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	b.told(id)
	incremental(a, "host b")
	incremental(a, "")
}

// told waits until the catalog has what the data plane says of a volume.
func (r *rig) told(id string) {
	r.Helper()
	// Who asks what a project has, has all told first.
	if _, err := r.agent.Quota(context.Background(), "nobody"); err != nil {
		r.Fatal(id, err)
	}
}
