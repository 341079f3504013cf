package agent

import (
	"fmt"
	"strings"
	"testing"
)

// pairs is metadata of so many items, each of about 510 bytes.
func pairs(n int) object {
	o := object{}
	for i := range n {
		o[fmt.Sprintf("%04d%s", i, strings.Repeat("k", 251))] = strings.Repeat("v", 255)
	}
	return o
}

// Metadata that are too much for what keeps them are refused before anything is done,
// and leave nothing.
func TestBlockTooMuch(t *testing.T) {
	r := apiRig(t, nil)
	const big = 140 // of them have more than 64 KiB
	r.refused(400, "limit", ann, "POST", "volumes", object{"volume": object{"size": 1, "metadata": pairs(big)}})
	v := r.disk(ann, object{"metadata": pairs(70)})
	r.refused(400, "limit", ann, "PUT", "volumes/"+v, object{"volume": object{"metadata": pairs(big)}})
	r.refused(400, "limit", ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v, "metadata": pairs(70)}})
	if l := each(r.get(ann, "snapshots"), "snapshots"); len(l) != 0 {
		t.Errorf("a refused snapshot is there: %v", l)
	}
	r.refused(400, "limit", ann, "POST", "backups", object{"backup": object{"volume_id": v, "metadata": pairs(70)}})
	if l := each(r.get(ann, "backups"), "backups"); len(l) != 0 {
		t.Errorf("a refused backup is there: %v", l)
	}
	id := r.backedUp(ann, v, object{"metadata": pairs(40)})
	r.refused(400, "limit", ann, "PUT", "backups/"+id, object{"backup": object{"metadata": pairs(70)}})
	r.call(200, ann, "PUT", "backups/"+id, object{"backup": object{"metadata": pairs(50)}})

	// What can be made can be exported, imported and restored, also to a volume that has
	// too much of its own to take over the backup's.
	record := r.get(root, "backups/"+id+"/export_record")
	r.call(201, root, "POST", "backups/import_record", record)
	other := object{}
	for k, x := range pairs(70) {
		other["other"+k[:250]] = x
	}
	to := r.disk(ann, object{"metadata": other})
	r.restoring(ann, id, to)
	r.becomes("backup", id, "available")
	r.becomes("volume", to, "available")
	if m, ok := r.get(ann, "volumes/"+to).at("volume", "metadata").(map[string]any); !ok || len(m) != 70 {
		t.Errorf("%d items", len(m))
	}
}

// A restored volume has what the backed up one had, and what encrypts stays with what
// encrypts.
func TestBlockRestoredNotes(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, object{"metadata": object{"role": "db", "tier": "1"}, "description": "words", "volume_type": "encrypted"})
	r.act(200, ann, "volume", v, "os-set_bootable", object{"bootable": true})
	data := noise(1 << 20)
	r.fill(v, data, 0)
	id := r.backedUp(ann, v, nil)

	to := r.restoring(ann, id, "")
	r.becomes("volume", to, "available")
	r.holds(to, data)
	x := r.get(ann, "volumes/"+to)
	for key, want := range map[string]any{"name": "restore_backup_" + id, "description": "words", "bootable": "true", "volume_type": "encrypted", "encrypted": true} {
		if got := x.at("volume", key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if got := fmt.Sprint(x.at("volume", "metadata")); got != "map[role:db tier:1]" {
		t.Error(got)
	}

	plain, secret := r.disk(ann, object{"metadata": object{"own": "x", "tier": "2"}}), r.disk(ann, object{"volume_type": "encrypted", "metadata": object{"own": "x", "tier": "2"}})
	r.refused(400, "encrypted", ann, "POST", "backups/"+id+"/restore", object{"restore": object{"volume_id": plain}})
	r.refused(400, "encrypted", ann, "POST", "volumes", object{"volume": object{"size": 1, "backup_id": id, "volume_type": "__DEFAULT__"}})
	r.restoring(ann, id, secret)
	r.becomes("volume", secret, "available")
	r.holds(secret, data)
	x = r.get(ann, "volumes/"+secret)
	if got := fmt.Sprint(x.at("volume", "metadata"), x.at("volume", "bootable"), x.at("volume", "name")); got != "map[own:x role:db tier:1]truedisk" {
		t.Error(got)
	}
	r.refused(400, "too small", ann, "POST", "backups/"+r.backedUp(ann, r.disk(ann, object{"size": 2}), nil)+"/restore", object{"restore": object{"volume_id": plain}})
}

// A snapshot is its volume's owner's, keeps what is noted of it, and is not deleted while
// it is backed up.
func TestBlockSnapshots(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	data := noise(40 << 20)
	r.fill(v, data, 0)
	id := r.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v, "name": "noon", "description": "before lunch", "metadata": object{"a": "b"}}}).text("snapshot", "id")
	r.fill(v, noise(1<<20), 0)
	r.call(200, ann, "PUT", "snapshots/"+id, object{"snapshot": object{"name": "12h"}})
	r.stopAgent()
	r.startAgent()
	x := r.get(ann, "snapshots/"+id)
	if got := fmt.Sprint(x.at("snapshot", "name"), x.at("snapshot", "description"), x.at("snapshot", "metadata")); got != "12hbefore lunchmap[a:b]" {
		t.Error(got)
	}
	r.refused(400, "have snapshots", ann, "DELETE", "volumes/"+v, nil)
	began, release := r.hang()
	b := r.backing(ann, v, object{"snapshot_id": id})
	r.await(began)
	if got := [2]string{r.state("snapshot", id), r.state("volume", v)}; got != [2]string{"backing-up", "available"} {
		t.Error(got)
	}
	r.refused(400, "reads snapshot", ann, "DELETE", "snapshots/"+id, nil)
	r.refused(400, "", ann, "DELETE", "volumes/"+v+"?cascade=True", nil)
	r.refused(400, `"backing-up"`, ann, "POST", "backups", object{"backup": object{"volume_id": v, "snapshot_id": id}})
	release()
	r.becomes("backup", b, "available")
	r.call(202, ann, "DELETE", "snapshots/"+id, nil)
	r.becomes("snapshot", id, "gone")
	to := r.restoring(ann, b, "")
	r.becomes("volume", to, "available")
	r.holds(to, data)

	// Of another volume, and of none.
	other := r.disk(ann, nil)
	later := r.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v}}).text("snapshot", "id")
	r.refused(400, "is not of volume", ann, "POST", "backups", object{"backup": object{"volume_id": other, "snapshot_id": later}})
	r.refused(404, "could not be found", ann, "POST", "backups", object{"backup": object{"volume_id": v, "snapshot_id": id}})
}

// What the operator deletes does not fill the room for the notes of what is there: the
// notes of snapshots that are gone go when any are written.
func TestBlockNotesOfGoneSnapshots(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	snap := func(n int) string {
		return r.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v, "name": "s", "metadata": pairs(n)}}).text("snapshot", "id")
	}
	noted := func() map[string]snapshotNotes {
		t.Helper()
		x, err := r.serve.Volume(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		return notesOf(x).Snapshots
	}
	kept := snap(10)
	for range 3 { // of which only one has room
		id := snap(100)
		r.refused(400, "limit", ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v, "metadata": pairs(100)}})
		if err := r.agent.DeleteSnapshot(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if l := noted(); len(l) != 2 {
		t.Errorf("%d snapshots have notes before anything is written, want 2", len(l))
	}
	r.call(200, ann, "PUT", "volumes/"+v, object{"volume": object{"name": "other"}})
	if l := noted(); len(l) != 1 || len(l[kept].Metadata) != 10 {
		t.Errorf("%d snapshots have notes, and the one that is there %d items, want 1 and 10", len(l), len(l[kept].Metadata))
	}
	if got := r.get(ann, "snapshots/"+kept).text("snapshot", "name"); got != "s" {
		t.Errorf("the snapshot that is there is called %q", got)
	}
}

// Cinder's rule, when the operator wants it.
func TestBlockStrictChains(t *testing.T) {
	for _, strict := range []bool{false, true} {
		r := apiRig(t, func(r *rig) { r.strict = strict })
		v := r.disk(ann, nil)
		r.fill(v, noise(1<<20), 0)
		full := r.backedUp(ann, v, nil)
		r.fill(v, noise(4096), 0)
		inc := r.backedUp(ann, v, object{"incremental": true})
		if got := r.get(ann, "backups/"+full).at("backup", "has_dependent_backups"); got != true {
			t.Errorf("has_dependent_backups: %v", got)
		}
		if strict {
			r.refused(400, "Invalid backup: Incremental backups exist for this backup.", ann, "DELETE", "backups/"+full, nil)
			r.refused(400, "Incremental backups exist", root, "POST", "backups/"+full+"/action", object{"os-force_delete": nil})
			r.call(202, ann, "DELETE", "backups/"+inc, nil)
			r.becomes("backup", inc, "gone")
		}
		r.call(202, ann, "DELETE", "backups/"+full, nil)
		r.becomes("backup", full, "gone")
		if !strict {
			to := r.restoring(ann, inc, "")
			r.becomes("volume", to, "available")
		}
	}
}
