package agent

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Of requests at once that exclude each other one is taken, and whatever the order was,
// everything comes to rest.
func TestBlockRaces(t *testing.T) {
	r := apiRig(t, nil)
	v, to := r.disk(ann, nil), r.disk(ann, nil)
	data := noise(1 << 20)
	r.fill(v, data, 0)
	for round := range 6 {
		id := r.backedUp(ann, v, nil)
		restore := "backups/" + id + "/restore"
		calls := []func() (int, object){
			func() (int, object) {
				return r.try(ann, "POST", restore, object{"restore": object{"volume_id": to}})
			},
			func() (int, object) {
				return r.try(ann, "POST", restore, object{"restore": object{"volume_id": to}})
			},
			func() (int, object) { return r.try(ann, "POST", restore, object{"restore": object{}}) },
			func() (int, object) { return r.try(ann, "DELETE", "backups/"+id, nil) },
			func() (int, object) { return r.try(ann, "DELETE", "backups/"+id, nil) },
			func() (int, object) {
				return r.try(root, "POST", "backups/"+id+"/action", object{"os-force_delete": object{}})
			},
			func() (int, object) {
				return r.try(root, "POST", "backups/"+id+"/action", object{"os-reset_status": object{"status": "available"}})
			},
			func() (int, object) { return r.try(root, "GET", "backups/"+id+"/export_record", nil) },
			func() (int, object) {
				return r.try(ann, "POST", "backups", object{"backup": object{"volume_id": v, "incremental": true}})
			},
		}
		answers := make([]int, len(calls))
		var wg sync.WaitGroup
		for i, f := range calls {
			wg.Go(func() {
				status, x := f()
				answers[i] = status
				if status == 0 || status >= 500 {
					t.Errorf("call %d: %d %v", i, status, x)
				}
			})
		}
		wg.Wait()
		r.until("rest", func() bool {
			for _, b := range each(r.get(root, "backups/detail?all_tenants=1"), "backups") {
				// An incremental fails when what it is to start from is deleted before its turn.
				if status := b.text("status"); status != "available" && status != "error" {
					return false
				}
			}
			for _, x := range each(r.get(ann, "volumes/detail"), "volumes") {
				if s := x.text("status"); s == "restoring-backup" || s == "backing-up" {
					return false
				}
			}
			return true
		})
		if r.state("volume", to) != "available" {
			r.act(202, root, "volume", to, "os-reset_status", object{"status": "available"})
		}
		for _, x := range each(r.get(ann, "volumes/detail"), "volumes") {
			if strings.HasPrefix(x.text("name"), "restore_backup_") {
				r.call(202, ann, "DELETE", "volumes/"+x.text("id"), nil)
			}
		}
		for _, b := range each(r.get(ann, "backups"), "backups") {
			r.call(202, ann, "DELETE", "backups/"+b.text("id"), nil)
		}
		if t.Failed() {
			t.Fatal(fmt.Sprint("round ", round, ": ", answers))
		}
	}
}

// Of restores to one volume at once one is taken.
func TestBlockRestoreOnce(t *testing.T) {
	r := apiRig(t, nil)
	v, to := r.disk(ann, nil), r.disk(ann, nil)
	data := noise(1 << 20)
	r.fill(v, data, 0)
	one, two := r.backedUp(ann, v, nil), r.backedUp(ann, v, nil)
	began, release := r.hold("get", "packs/")
	var wg sync.WaitGroup
	var taken atomic.Int64
	for i := range 10 {
		wg.Go(func() {
			id := one
			if i%2 == 0 {
				id = two
			}
			switch status, x := r.try(ann, "POST", "backups/"+id+"/restore", object{"restore": object{"volume_id": to}}); status {
			case 202:
				taken.Add(1)
			case 400:
			default:
				t.Errorf("%d %v", status, x)
			}
		})
	}
	wg.Wait()
	r.await(began)
	if n := taken.Load(); n != 1 {
		t.Errorf("%d were taken", n)
	}
	release()
	r.becomes("volume", to, "available")
	r.becomes("backup", one, "available")
	r.becomes("backup", two, "available")
	r.holds(to, data)
}

// each is a list of objects in an answer.
func each(o object, key string) []object {
	l, ok := o[key].([]any)
	if !ok {
		return nil
	}
	var out []object
	for _, x := range l {
		if m, ok := x.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}
