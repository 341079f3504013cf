package agent

import (
	"errors"
	"strings"
	"testing"
)

// Nothing of a project is of any use to another, by no way of the API.
func TestBlockOtherProject(t *testing.T) {
	r := apiRig(t, nil)
	v, w := r.disk(ann, nil), r.disk(bob, nil)
	r.fill(v, noise(1<<20), 0)
	r.fill(w, noise(1<<20), 0)
	mine, theirs := r.backedUp(ann, v, nil), r.backedUp(bob, w, nil)
	snap := r.call(202, bob, "POST", "snapshots", object{"snapshot": object{"volume_id": w}}).text("snapshot", "id")
	for _, x := range []struct {
		method, path string
		body         any
	}{
		{"GET", "volumes/" + w, nil},
		{"GET", "backups/" + theirs, nil},
		{"GET", "snapshots/" + snap, nil},
		{"DELETE", "volumes/" + w, nil},
		{"DELETE", "backups/" + theirs, nil},
		{"DELETE", "snapshots/" + snap, nil},
		{"PUT", "backups/" + theirs, object{"backup": object{"name": "x"}}},
		{"POST", "backups", object{"backup": object{"volume_id": w}}},
		{"POST", "backups", object{"backup": object{"volume_id": v, "snapshot_id": snap}}},
		{"POST", "backups/" + theirs + "/restore", object{"restore": object{}}},
		{"POST", "backups/" + theirs + "/restore", object{"restore": object{"volume_id": v}}},
		{"POST", "backups/" + mine + "/restore", object{"restore": object{"volume_id": w}}},
		{"POST", "volumes", object{"volume": object{"size": 1, "backup_id": theirs}}},
	} {
		r.refused(404, "could not be found", ann, x.method, x.path, x.body)
	}

	// A full backup of the volume in another project is none to start from.
	r.backedUp(root, v, nil)
	other := r.disk(ann, nil)
	r.fill(other, noise(4096), 0)
	r.backedUp(root, other, nil)
	r.refused(400, "Invalid backup: No backups available to do an incremental backup.", ann, "POST", "backups", object{"backup": object{"volume_id": other, "incremental": true}})
	own := r.backedUp(ann, v, object{"incremental": true})
	if b, err := r.agent.Backup(t.Context(), own); err != nil || b.Parent != mine {
		t.Errorf("started from %s, want %s: %v", b.Parent, mine, err)
	}
	// Nor is one that an administrator has called an error.
	fresh := r.disk(ann, nil)
	bad := r.backedUp(ann, fresh, nil)
	r.act(202, root, "backup", bad, "os-reset_status", object{"status": "error"})
	r.refused(400, "No backups available", ann, "POST", "backups", object{"backup": object{"volume_id": fresh, "incremental": true}})
	r.refused(400, `must be available, but the current status is "error"`, ann, "POST", "backups/"+bad+"/restore", object{"restore": object{}})
	r.act(202, root, "backup", bad, "os-reset_status", object{"status": "available"})
	r.backedUp(ann, fresh, object{"incremental": true})
}

// A backup that is called as another's ID is never taken for that.
func TestBlockNameLikeID(t *testing.T) {
	r := apiRig(t, nil)
	ctx := t.Context()
	v, w := r.disk(ann, nil), r.disk(bob, nil)
	mine := r.backedUp(ann, v, nil)
	evil := r.backedUp(bob, w, object{"name": mine})
	r.call(202, ann, "DELETE", "backups/"+mine, nil)
	r.becomes("backup", mine, "gone")
	if b, err := r.agent.Backup(ctx, mine); !errors.Is(err, ErrNotFound) {
		t.Errorf("%s is %s: %v", mine, b.ID, err)
	}
	if err := r.agent.DeleteBackup(ctx, mine); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if got := r.state("backup", evil); got != "available" {
		t.Error(got)
	}
}

// Names that a program can send are kept as they are, and a backup of a volume with any
// of them is made.
func TestBlockOddNames(t *testing.T) {
	r := apiRig(t, nil)
	for _, name := range []string{"", "ä" + strings.Repeat("ö", 254), strings.Repeat("😀", 255), "a/b", "..", "x\ny", "\x1b[2J", "<&>\"'", "\u202e", "a\x00b"} {
		status, x := r.try(ann, "POST", "volumes", object{"volume": object{"size": 1, "name": name, "description": name}})
		if status == 400 {
			if x.fault() == "" {
				t.Errorf("volume %q: %v", name, x)
			}
			continue
		}
		if status != 202 {
			t.Errorf("volume %q: %d %v", name, status, x)
			continue
		}
		v := x.text("volume", "id")
		status, x = r.try(ann, "POST", "backups", object{"backup": object{"volume_id": v, "name": name, "container": name}})
		if status != 202 {
			t.Errorf("backup %q: %d %v", name, status, x)
			continue
		}
		id := x.text("backup", "id")
		r.becomes("backup", id, "available")
		if got := r.get(ann, "backups/"+id).text("backup", "name"); got != strings.TrimSpace(name) {
			t.Errorf("%q became %q", name, got)
		}
		to := r.restoring(ann, id, "")
		r.becomes("volume", to, "available")
		for _, path := range []string{"backups/" + id, "volumes/" + to, "volumes/" + v} {
			r.call(202, ann, "DELETE", path, nil)
		}
		r.becomes("backup", id, "gone")
	}
}
