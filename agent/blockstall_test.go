package agent

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Stores that hang make nobody wait but those who need them: a deletion is promised, and
// restores, records and other deletions go on meanwhile as far as they can.
func TestBlockHungStores(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	var l []string
	for range 4 {
		l = append(l, r.backedUp(ann, v, nil))
	}
	record := r.get(root, "backups/"+l[3]+"/export_record")
	began, release := r.hold("put", "deleted/")
	started := time.Now()
	var wg sync.WaitGroup
	for _, id := range l[:2] {
		wg.Go(func() {
			if status, x := r.try(ann, "DELETE", "backups/"+id, nil); status != http.StatusAccepted {
				t.Errorf("%d %v", status, x)
			}
		})
	}
	r.await(began)
	to := r.restoring(ann, l[2], "")
	r.becomes("volume", to, "available")
	r.call(201, root, "POST", "backups/import_record", record)
	r.refused(400, "Backup status must be available or error", ann, "DELETE", "backups/"+l[0], nil)
	wg.Wait()
	if d := time.Since(started); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	for _, id := range l[:2] {
		if got := r.state("backup", id); got != "deleting" {
			t.Errorf("backup %s is %s", id, got)
		}
	}
	release()
	for _, id := range l[:2] {
		r.becomes("backup", id, "gone")
	}
}

// A data plane that hangs keeps nobody who does not need it, and everything goes on when
// it does.
func TestBlockHungPlane(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	one, two := r.backedUp(ann, v, nil), r.backedUp(ann, v, nil)
	r.stopServe()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", filepath.Join(r.dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	hung := make(chan struct{})
	go func() {
		defer close(hung)
		for {
			c, aerr := l.Accept()
			if aerr != nil {
				return
			}
			defer func() { _ = c.Close() }() // all of them when the listener is closed
		}
	}()
	client := &http.Client{Timeout: 500 * time.Millisecond}
	var wg sync.WaitGroup
	for _, path := range []string{"volumes", "volumes/detail", "snapshots", "os-quota-sets/a?usage=True", "os-services", "volumes/" + v} {
		for range 3 {
			wg.Go(func() {
				req, rerr := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/volume/v3/"+path, nil)
				if rerr != nil {
					t.Error(rerr)
					return
				}
				req.Header.Set("X-Auth-Token", root)
				if resp, derr := client.Do(req); derr == nil {
					_ = resp.Body.Close()
					t.Errorf("%s: %s", path, resp.Status)
				}
			})
		}
	}
	wg.Wait()
	started := time.Now()
	r.get(ann, "backups/detail")
	r.call(200, ann, "PUT", "backups/"+one, object{"backup": object{"name": "x"}})
	r.call(202, ann, "DELETE", "backups/"+one, nil)
	r.becomes("backup", one, "gone")
	r.act(202, root, "backup", two, "os-reset_status", object{"status": "error"})
	r.act(202, root, "backup", two, "os-reset_status", object{"status": "available"})
	if d := time.Since(started); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if err = l.Close(); err != nil {
		t.Error(err)
	}
	<-hung
	r.startServe()
	to := r.restoring(ann, two, "")
	r.becomes("volume", to, "available")
}

// Without the data plane, and without the repository, what needs them is refused as
// unavailable, and nothing as an error of the server.
func TestBlockAway(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	snap := r.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v}}).text("snapshot", "id")
	id := r.backedUp(ann, v, nil)
	record := r.get(root, "backups/"+id+"/export_record")
	r.stopServe()
	for _, x := range []struct {
		who, method, path string
		body              any
	}{
		{ann, "GET", "volumes", nil},
		{ann, "GET", "volumes/detail", nil},
		{ann, "GET", "volumes/" + v, nil},
		{ann, "PUT", "volumes/" + v, object{"volume": object{"name": "x"}}},
		{ann, "DELETE", "volumes/" + v, nil},
		{ann, "POST", "volumes", object{"volume": object{"size": 1}}},
		{ann, "POST", "volumes", object{"volume": object{"size": 1, "backup_id": id}}},
		{ann, "POST", "volumes/" + v + "/action", object{"os-extend": object{"new_size": 2}}},
		{ann, "GET", "volumes/" + v + "/metadata", nil},
		{ann, "GET", "snapshots", nil},
		{ann, "GET", "snapshots/" + snap, nil},
		{ann, "DELETE", "snapshots/" + snap, nil},
		{ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v}}},
		{ann, "POST", "backups", object{"backup": object{"volume_id": v}}},
		{ann, "POST", "backups/" + id + "/restore", object{"restore": object{}}},
		{ann, "POST", "backups/" + id + "/restore", object{"restore": object{"volume_id": v}}},
		{ann, "GET", "os-quota-sets/a?usage=True", nil},
		{root, "GET", "os-quota-sets/a", nil},
		{root, "PUT", "os-quota-sets/a?skip_validation=False", object{"quota_set": object{"backups": 5}}},
		{ann, "GET", "limits", nil},
	} {
		status, answer := r.try(x.who, x.method, x.path, x.body)
		if status != 503 && (status/100 != 2 || !strings.Contains(x.path, "quota") && x.path != "limits") {
			t.Errorf("without the data plane %s %s: %d %v", x.method, x.path, status, answer)
		}
		if strings.Contains(answer.fault(), r.dir) {
			t.Errorf("a tenant is told of paths: %s", answer.fault())
		}
	}
	r.get(ann, "backups/detail")
	if got := each(r.get(root, "os-services"), "services"); len(got) != 2 || got[1].text("state") != "down" {
		t.Errorf("services %v", got)
	}
	r.startServe()

	r.stopAgent()
	open := r.opener
	r.opener = errOpener
	r.startAgent()
	for _, x := range []struct {
		who, method, path string
		body              any
	}{
		{ann, "POST", "backups", object{"backup": object{"volume_id": v}}},
		{ann, "DELETE", "backups/" + id, nil},
		{root, "POST", "backups/" + id + "/action", object{"os-force_delete": nil}},
		{ann, "POST", "backups/" + id + "/restore", object{"restore": object{}}},
		{root, "GET", "backups/" + id + "/export_record", nil},
		{root, "POST", "backups/import_record", record},
	} {
		if status, answer := r.try(x.who, x.method, x.path, x.body); status != 503 {
			t.Errorf("without the repository %s %s: %d %v", x.method, x.path, status, answer)
		}
	}
	for _, path := range []string{"backups/detail", "backups/" + id, "volumes/detail", "snapshots/detail", "os-quota-sets/a?usage=True"} {
		r.get(ann, path)
	}
	r.stopAgent()
	r.opener = open
	r.startAgent()
	r.restoring(ann, id, "")
}

// A backup that is about to be used is not deleted, and others are meanwhile.
func TestClaimedBackup(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	one, two := r.backup(CreateBackup{Volume: v.ID}), r.backup(CreateBackup{Volume: v.ID})
	// The image of an export is read while its backup is claimed.
	began, release := r.hold("get", "backups/")
	exported := make(chan error, 1)
	go func() {
		_, err := r.agent.Export(ctx, Export{Ref: one.ID})
		exported <- err
	}()
	select {
	case <-began:
		if err := r.agent.DeleteBackup(ctx, one.ID); !errors.Is(err, ErrBusy) {
			t.Errorf("deleted while it is exported: %v", err)
		}
	case err := <-exported: // nothing had to be read
		exported <- err
	case <-time.After(time.Minute):
		t.Fatal("the export hangs")
	}
	release()
	if err := <-exported; err != nil {
		t.Fatal(err)
	}
	if err := r.agent.DeleteBackup(ctx, one.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("deleted while it is exported: %v", err)
	}
	if err := r.agent.DeleteBackup(ctx, two.ID); err != nil {
		t.Error(err)
	}
	if err := r.agent.Unexport(ctx, one.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.DeleteBackup(ctx, one.ID); err != nil {
		t.Error(err)
	}
	if _, err := r.agent.Undelete(ctx, one.ID); err != nil {
		t.Error(err)
	}
}
