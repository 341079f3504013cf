package agent

import (
	"net/http"
	"strings"
	"sync"
	"testing"
)

// Fifty ask at once where ten may be: exactly ten are made, of backups, of volumes and of
// snapshots, and the others are told why.
func TestBlockQuota(t *testing.T) {
	r := apiRig(t, func(r *rig) { r.limits.ConcurrentJobs = 2 })
	r.call(200, root, "PUT", "os-quota-sets/a", object{"quota_set": object{"volumes": 60}})
	var volumes []string
	for range 50 {
		volumes = append(volumes, r.disk(ann, nil))
	}
	atOnce := func(who, path, says string, body func(i int) object) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := 0
		for i := range 50 {
			wg.Go(func() {
				status, x := r.try(who, http.MethodPost, path, body(i))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case status == http.StatusAccepted:
					made++
				case status != http.StatusRequestEntityTooLarge || !strings.Contains(x.fault(), says):
					t.Errorf("%s: %d %v", path, status, x)
				}
			})
		}
		wg.Wait()
		if made != 10 {
			t.Errorf("%d %s were made", made, path)
		}
	}
	atOnce(ann, "backups", "Maximum number of backups allowed (10) exceeded", func(i int) object {
		return object{"backup": object{"volume_id": volumes[i]}}
	})
	atOnce(bob, "volumes", "Maximum number of volumes allowed (10) exceeded", func(int) object {
		return object{"volume": object{"size": 1}}
	})
	atOnce(ann, "snapshots", "Maximum number of snapshots allowed (10) exceeded", func(i int) object {
		return object{"snapshot": object{"volume_id": volumes[i], "force": true}}
	})
	used := r.get(ann, "os-quota-sets/a?usage=True")
	for resource, want := range map[string]float64{"backups": 10, "backup_gigabytes": 10, "volumes": 50, "snapshots": 10, "gigabytes": 60} {
		if got := used.at("quota_set", resource, "in_use"); got != want {
			t.Errorf("%v %s in use, want %v", got, resource, want)
		}
	}

	// What the operator makes of a project's volume is the project's, and counts.
	b := r.backup(CreateBackup{Volume: volumes[0], Name: "by the operator"})
	if got := r.get(ann, "backups/"+b.ID).text("backup", "name"); got != "by the operator" || b.Project != "a" {
		t.Errorf("the operator's backup of a project's volume: %q, %q", got, b.Project)
	}
	r.call(404, bob, "GET", "backups/"+b.ID, nil)
	r.call(200, root, "PUT", "os-quota-sets/a", object{"quota_set": object{"backups": 11}})
	r.refused(413, "(11) exceeded", ann, "POST", "backups", object{"backup": object{"volume_id": volumes[0]}})
	r.call(200, root, "PUT", "os-quota-sets/a", object{"quota_set": object{"backups": -1, "backup_gigabytes": 11}})
	r.refused(413, "Requested 1G, quota is 11G and 11G has been consumed", ann, "POST", "backups", object{"backup": object{"volume_id": volumes[1]}})
}

// A volume does not grow beyond what its project may have.
func TestBlockExtend(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	extend := func(size int) object { return object{"os-extend": object{"new_size": size}} }
	r.call(200, root, "PUT", "os-quota-sets/a", object{"quota_set": object{"gigabytes": 5, "per_volume_gigabytes": 3}})
	r.refused(413, "larger than maximum allowed limit 3G", ann, "POST", "volumes/"+v+"/action", extend(4))
	r.refused(400, "must be greater than current size", ann, "POST", "volumes/"+v+"/action", extend(1))
	r.call(202, ann, "POST", "volumes/"+v+"/action", extend(3))
	r.call(202, ann, "POST", "volumes", object{"volume": object{"size": 2}})
	r.refused(413, "quota is 5G and 5G has been consumed", ann, "POST", "volumes", object{"volume": object{"size": 1}})
	r.call(200, root, "PUT", "os-quota-sets/a", object{"quota_set": object{"per_volume_gigabytes": -1}})
	r.refused(413, "Requested 1G, quota is 5G and 5G has been consumed", ann, "POST", "volumes/"+v+"/action", extend(4))
	r.refused(400, "", root, "PUT", "os-quota-sets/a", object{"quota_set": object{"wings": 1}})
}

// The operator's own volumes are under no quota, also when an administrator changes them
// through the API; what is made of a project's is.
func TestBlockOperatorHasNoQuota(t *testing.T) {
	r := apiRig(t, nil)
	var own []string
	for _, name := range []string{"one", "two"} {
		own = append(own, r.volume(name, 600<<30).ID)
	}
	snap := func(volume string) object { return object{"snapshot": object{"volume_id": volume, "name": "s"}} }
	for range 11 { // 10 snapshots and 1,000 GiB is what a project may have
		r.call(202, root, "POST", "snapshots", snap(own[0]))
	}
	r.call(202, root, "POST", "volumes/"+own[1]+"/action", object{"os-extend": object{"new_size": 1500}})
	r.call(202, root, "POST", "snapshots", snap(own[1]))

	theirs := r.disk(ann, nil)
	for range 10 {
		r.call(202, root, "POST", "snapshots", snap(theirs))
	}
	r.refused(413, "Maximum number of snapshots allowed (10) exceeded", root, "POST", "snapshots", snap(theirs))
	r.refused(413, "quota is 1000G and 11G has been consumed", root, "POST", "volumes/"+theirs+"/action", object{"os-extend": object{"new_size": 1500}})
}
