package e2e

import (
	"context"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/agent"
)

// disasters kills one and cuts two off, in the middle of all that they may be at, and
// has both come back.
func (c *cluster) disasters(one, two, three *node, d disk) {
	t := c.t
	wide, wideContent := three.volume("wide", 192*mib)
	wideBackup := three.ends(three.back(wide, "wide", nil)).ID
	c.contents[wideBackup] = wideContent
	big, bigContent := one.volume("big", 96*mib)
	long, longContent := two.volume("long", 84*mib)
	short, shortContent := two.volume("short", 8*mib)
	waits, waitsContent := two.volume("waits", 2*mib)

	killed := two.back(big, "killed", nil)
	longBackup := three.back(long, "long", nil)
	one.working("backup", killed, 2*mib)
	killedAt := time.Now()
	one.kill(one.agent)
	one.kill(one.serve)

	two.working("backup", longBackup, mib)
	shortBackup := two.back(short, "short", nil)
	two.working("backup", shortBackup, mib)
	restore := two.asked(http.StatusAccepted, "demo", http.MethodPost, "backups/"+wideBackup+"/restore", object{"restore": object{"name": "wide again"}})
	target, _ := restore.at("restore", "volume_id").(string)
	waitsBackup := two.back(waits, "waits", nil) // there is no job free for it
	two.working("restore", wideBackup, 0)
	cutAt := time.Now()
	two.pull()
	contents := map[string][]byte{killed: bigContent, longBackup: longContent, shortBackup: shortContent, waitsBackup: waitsContent}

	var alone sync.WaitGroup
	alone.Go(func() { c.alone(two, long, d.backup) })
	refused := three.ask("demo", http.MethodPost, "backups", object{"backup": object{"volume_id": d.id}})
	if refused.status != http.StatusServiceUnavailable || !strings.Contains(refused.fault(), "does not answer") || refused.took > time.Minute {
		t.Errorf("a backup of a volume whose host was just killed: %v", refused)
	}
	three.becomes(one, false)
	t.Logf("node-1 is down for the others after %s", time.Since(killedAt).Round(time.Second))
	three.becomes(two, false)
	t.Logf("node-2 is down for the others after %s", time.Since(cutAt).Round(time.Second))
	out := three.did("admin", "cinder", "service-list")
	if !serviceIs(out, "cinder-backup", one.name, "down") || !serviceIs(out, "cinder-backup", two.name, "down") || !serviceIs(out, "cinder-backup", three.name, "up") {
		t.Errorf("services:\n%s", out)
	}
	if a := three.ask("demo", http.MethodPost, "backups", object{"backup": object{"volume_id": d.id}}); a.status != http.StatusServiceUnavailable || a.took > 10*time.Second {
		t.Errorf("a backup of a volume whose host is down: %v", a)
	}
	if a := three.ask("demo", http.MethodGet, "volumes/"+d.id, nil); a.at("volume", "status") != "available" {
		t.Errorf("a volume whose host is down: %v", a)
	}
	three.holds(three.restored(d.backup), d.content, "a backup of the host that is dead")
	for _, id := range slices.Sorted(maps.Keys(contents)) {
		c.verdict(three.ends(id))
	}
	t.Logf("all is settled after %s", time.Since(cutAt).Round(time.Second))
	if b := three.ends(wideBackup); b.Status != agent.BackupAvailable {
		t.Errorf("what the host that is cut off restores: %+v", b)
	}

	// The dead host comes back, with the limit of none.
	one.settings = slices.DeleteFunc(one.settings, func(s string) bool { return s == "--read-limit" || s == "4MiB" })
	one.startServe()
	one.startAgent()
	three.becomes(one, true)
	again := three.ends(three.back(big, "again", nil))
	if again.Status != agent.BackupAvailable || again.Host != one.name {
		t.Errorf("a backup of what was backed up when its host died: %+v", again)
	}
	c.contents[again.ID] = bigContent
	one.clean()

	alone.Wait()
	two.plug()
	three.becomes(two, true)
	t.Logf("node-2 is back %s after it was cut off", time.Since(cutAt).Round(time.Second))
	two.quiet()
	two.until("the catalog knows that the jobs have ended", func(ctx context.Context) (bool, error) {
		l, err := three.control.Jobs(ctx, 0)
		return !slices.ContainsFunc(l, func(j agent.Job) bool { return j.Host == two.name && !j.State.Final() }), err
	})
	for _, id := range slices.Sorted(maps.Keys(contents)) {
		b := three.ends(id)
		c.verdict(b)
		if b.Status == agent.BackupAvailable {
			c.contents[id] = contents[id]
		}
	}
	switch s := three.ask("demo", http.MethodGet, "volumes/"+target, nil).at("volume", "status"); s {
	case "available":
		two.holds(target, wideContent, "what was restored while the host was cut off")
	case "error_restoring":
	default:
		t.Errorf("what was restored while the host was cut off is %v", s)
	}
	after := three.ends(three.back(waits, "after", nil))
	if after.Status != agent.BackupAvailable || after.Host != two.name {
		t.Errorf("a backup at the host that is back: %+v", after)
	}
	c.contents[after.ID] = waitsContent
	two.clean()
}

// verdict compares what the catalog says of a backup that is settled with what the stores say.
func (c *cluster) verdict(b agent.Backup) {
	c.t.Helper()
	c.t.Logf("backup %s: %s (%s)", b.Name, b.Status, b.FailReason)
	if stored := c.stored()[b.ID]; stored != (b.Status == agent.BackupAvailable) {
		c.t.Errorf("the stores have it: %v, and the catalog says %+v", stored, b)
	}
}

// alone is what a host answers that is cut off from the database.
func (c *cluster) alone(n *node, volume, backup string) {
	const most = time.Minute
	var wg sync.WaitGroup
	for range 2 {
		for _, x := range []struct {
			method, path string
			body         any
		}{
			{http.MethodGet, "volumes/detail", nil},
			{http.MethodGet, "volumes/" + volume, nil},
			{http.MethodGet, "backups/detail", nil},
			{http.MethodGet, "backups/" + backup, nil},
			{http.MethodGet, "os-services", nil},
			{http.MethodPost, "volumes", object{"volume": object{"size": 1}}},
			{http.MethodPost, "backups", object{"backup": object{"volume_id": volume, "force": true}}},
			{http.MethodPost, "backups/" + backup + "/restore", object{"restore": object{}}},
			{http.MethodDelete, "backups/" + backup, nil},
		} {
			wg.Go(func() {
				a := n.ask("admin", x.method, x.path, x.body)
				c.t.Logf("cut off: %s %s: %v", x.method, x.path, a)
				if a.status != http.StatusServiceUnavailable || a.fault() == "" || a.took > most {
					c.t.Errorf("cut off: %s %s: %v", x.method, x.path, a)
				}
			})
		}
		wg.Go(func() {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), most)
			defer cancel()
			out, err := exec.CommandContext(ctx, n.bin, "status", "--socket", n.path("agent.sock")).CombinedOutput()
			c.t.Logf("cut off: cairn status after %s:\n%s", time.Since(begun).Round(time.Millisecond), out)
			if err != nil {
				c.t.Errorf("cairn status of a host that is cut off: %v", err)
			}
		})
		wg.Wait()
	}
}

// clean waits until a node has no temporary snapshot, and the checkpoints of backups that there are and no
// others.
func (n *node) clean() {
	n.t.Helper()
	n.until("nothing is left over", func(ctx context.Context) (bool, error) {
		snapshots, err := n.data.Snapshots(ctx, "")
		if err != nil || len(snapshots) > 0 {
			return false, err
		}
		volumes, err := n.data.Volumes(ctx)
		if err != nil {
			return false, err
		}
		all, err := n.control.Backups(ctx)
		for _, v := range volumes {
			for _, x := range v.Checkpoints {
				if !slices.ContainsFunc(all, func(b agent.Backup) bool { return b.ID == x.Name && b.Status == agent.BackupAvailable }) {
					return false, err
				}
			}
		}
		return true, err
	})
}
