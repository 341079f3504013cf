package e2e

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/agent"
)

// TestHosts is three hosts, each with an agent and a data plane of its own on a network,
// that share a database and the stores: in quiet days, when one dies and another is cut
// off in the middle of its work, when both are back, and in a crowd.
func TestHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	t.Parallel() // the clients spend most of their time in starting, and waiting
	// Two reads slowly, so that much can happen meanwhile.
	c := newCluster(t, []string{"--read-limit", "4MiB"}, []string{"--read-limit", "1MiB", "--jobs", "3"}, nil)
	c.logIn("demo", "admin")
	one, two, three := c.nodes[0], c.nodes[1], c.nodes[2]
	for i, n := range c.nodes {
		args := []string{"cinder", "service-list"}
		if i == 1 {
			args = []string{"openstack", "volume", "service", "list"}
		}
		out := n.did("admin", args...)
		for _, o := range c.nodes {
			if !serviceIs(out, "cinder-backup", o.name, "up") || !serviceIs(out, "cinder-volume", o.name+"@cairn", "up") {
				t.Errorf("%s does not list %s as up:\n%s", n.name, o.name, out)
			}
		}
	}
	three.operator("quota", "update", "demo", "--backups", "-1", "--backup-gigabytes", "-1", "--volumes", "-1", "--gigabytes", "-1", "--users", one.path("state", "identity.json"))

	disk := c.day(one, two, three)
	c.disasters(one, two, three, disk)
	c.crowd()
	c.agree()
}

// serviceIs says whether a table of services has one in a state.
func serviceIs(table, binary, host, state string) bool {
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) > 2 && cells[1] == binary && cells[2] == host && slices.Contains(cells, state) {
			return true
		}
	}
	return false
}

// disk is a volume of a node, what it holds, and its newest backup.
type disk struct {
	id, backup string
	content    []byte
}

// day is the work of a day on a volume of one, ordered by the stock clients at two,
// and restored at three.
func (c *cluster) day(one, two, three *node) disk {
	t := c.t
	one.did("demo", "openstack", "volume", "create", "--size", "1", "disk")
	id := one.value("demo", volumeKind, "disk", "id")
	content := make([]byte, 8*mib)
	one.fill(id, content, 0, 3*mib)
	one.unused(id)
	if out := two.did("demo", "cinder", "list"); !strings.Contains(out, id) {
		t.Errorf("node-2 does not list what node-1 has:\n%s", out)
	}
	if got := two.value("admin", volumeKind, id, "os-vol-host-attr:host"); got != "node-1@cairn#cairn" {
		t.Errorf("the volume's host is %q", got)
	}
	two.did("demo", "openstack", "volume", "snapshot", "create", "--volume", "disk", "noon")
	noon := two.value("demo", "volume snapshot", "noon", "id")
	atNoon := slices.Clone(content)
	one.fill(id, content, mib, mib)
	one.unused(id)

	made := map[string][]byte{}
	for _, b := range []struct {
		name    string
		more    []string
		content []byte
	}{
		{"of-noon", []string{"--snapshot-id", noon}, atNoon}, {"full", nil, content}, {"incremental", []string{"--incremental"}, nil},
	} {
		if b.content == nil {
			one.fill(id, content, 6*mib, mib)
			one.unused(id)
			b.content = content
		}
		two.did("demo", append([]string{"cinder", "backup-create", "--name", b.name, "disk"}, b.more...)...)
		x := two.ends(two.named(b.name).ID)
		if x.Status != agent.BackupAvailable || x.Host != one.name {
			t.Fatalf("backup %s of a volume of %s: %+v", b.name, one.name, x)
		}
		made[x.ID] = slices.Clone(b.content)
		if b.name == "incremental" && (!x.Incremental || x.BytesRead > 2*mib) {
			t.Errorf("the incremental: %+v", x)
		}
	}
	maps.Copy(c.contents, made)
	if out := three.operator("job", "list"); strings.Count(out, one.name) < 3 {
		t.Errorf("where the jobs ran:\n%s", out)
	}
	for backup, want := range made {
		three.did("demo", "cinder", "backup-restore", backup)
		name := "restore_backup_" + backup
		three.until("it is restored", func(context.Context) (bool, error) {
			return three.value("demo", volumeKind, name, "status") == "available", nil
		})
		got := three.value("demo", volumeKind, name, "id")
		three.holds(got, want, "backup "+backup+", restored at another host")
		if host := one.value("admin", volumeKind, got, "os-vol-host-attr:host"); host != "node-3@cairn#cairn" {
			t.Errorf("what was restored at node-3 is at %s", host)
		}
	}
	two.did("demo", "openstack", "volume", "snapshot", "delete", "noon")
	return disk{id: id, backup: two.named("incremental").ID, content: content}
}
