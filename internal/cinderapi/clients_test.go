package cinderapi

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestCinderBackups(t *testing.T) {
	c := newCloud(t)
	vol := c.newVolume(t, "alice", "db")
	other := c.newVolume(t, "bob", "theirs")
	cinder := func(args ...string) string { return c.run(t, "alice", true, "cinder", args...) }
	admin := func(args ...string) string { return c.run(t, "root", true, "cinder", args...) }

	out := cinder("list")
	has(t, out, vol, "db", "available")
	lacks(t, out, other)
	has(t, admin("list", "--all-tenants"), vol, other)
	has(t, cinder("show", "db"), vol, "os-vol-tenant-attr:tenant_id", projectA)
	has(t, c.run(t, "alice", false, "cinder", "show", other), "No volume with a name or ID")

	out = cinder("backup-create", "db", "--name", "one", "--description", "first", "--container", "box")
	has(t, out, "one")
	cinder("backup-create", "db", "--incremental", "--force", "--name", "two")
	out = cinder("backup-list")
	has(t, out, "one", "two", "box")
	has(t, cinder("backup-show", "two"), "is_incremental", "True", vol)
	has(t, cinder("backup-show", "one"), "has_dependent_backups", "first")
	cinder("backup-update", "--name", "uno", "one")
	has(t, cinder("backup-restore", "uno"), "restore_backup_")
	has(t, cinder("backup-restore", "two", "--volume", "db"), vol)
	has(t, c.run(t, "alice", false, "cinder", "backup-reset-state", "--state", "error", "two"), "Policy doesn't allow")
	admin("backup-reset-state", "--state", "error", "two")
	has(t, cinder("backup-list", "--status", "error"), "two")
	cinder("backup-delete", "two")
	lacks(t, cinder("backup-list"), "two")

	uno := c.named(t, "uno")
	has(t, admin("backup-export", uno.ID), "cinder.backup.drivers", "backup_url")
	has(t, c.run(t, "alice", false, "cinder", "backup-export", uno.ID), "403")
	uno.ID, uno.Name = uuid.NewString(), "again"
	record, err := json.Marshal(uno)
	if err != nil {
		t.Fatal(err)
	}
	has(t, admin("backup-import", "cinder.backup.drivers.cairn", base64.StdEncoding.EncodeToString(record)), uno.ID, "again")
	c.hang = true
	cinder("backup-create", "db", "--name", "slow")
	admin("backup-delete", "--force", "slow")
	c.hang = false
}

func TestCinderOthers(t *testing.T) {
	c := newCloud(t)
	vol := c.newVolume(t, "alice", "db")
	c.newBackup(t, "alice", vol, "one")
	c.newBackup(t, "alice", vol, "two")
	cinder := func(args ...string) string { return c.run(t, "alice", true, "cinder", args...) }
	admin := func(args ...string) string { return c.run(t, "root", true, "cinder", args...) }

	has(t, cinder("quota-show", projectA), "backup_gigabytes", "1000")
	has(t, cinder("quota-usage", "science"), "backups", "In_use")
	has(t, admin("quota-update", "--backups", "2", projectA), "backups", "2")
	has(t, c.run(t, "alice", false, "cinder", "backup-create", "db"), "Maximum number of backups allowed (2) exceeded", "413")
	admin("quota-update", "--backup-gigabytes", "7", projectA)
	has(t, admin("service-list"), "cinder-volume", "node1@cairn", "maintenance")
	has(t, c.run(t, "alice", false, "cinder", "service-list"), "403")
	has(t, cinder("snapshot-create", "db", "--name", "snap"), "snap")
	has(t, cinder("snapshot-list", "--volume-id", vol), "snap")
	has(t, cinder("snapshot-show", "snap"), vol, "100%")
	cinder("metadata", "db", "set", "a=1", "b=2")
	cinder("metadata", "db", "unset", "a")
	has(t, cinder("metadata-show", "db"), "b")
	cinder("extend", "db", "3")
	has(t, cinder("type-list"), "plain")
	has(t, cinder("backup-list", "--limit", "1", "--with-count"), "Backup in total: 2")
}

func TestCinderPages(t *testing.T) {
	c := newCloud(t)
	c.fill(1100)
	out := c.run(t, "alice", true, "cinder", "backup-list")
	if n := strings.Count(out, "| b-"); n != 1100 {
		t.Errorf("%d backups listed, want 1100", n)
	}
}

func TestOpenStackClient(t *testing.T) {
	c := newCloud(t)
	osc := func(args ...string) string { return c.run(t, "alice", true, "openstack", args...) }
	admin := func(args ...string) string { return c.run(t, "root", true, "openstack", args...) }

	has(t, osc("volume", "create", "--size", "1", "db"), "db", "plain")
	has(t, osc("volume", "show", "db"), "db", "available")
	has(t, osc("volume", "list"), "db")
	osc("volume", "snapshot", "create", "--volume", "db", "snap")
	has(t, osc("volume", "backup", "create", "--name", "one", "db"), "one")
	osc("volume", "backup", "create", "--incremental", "--force", "--name", "two", "db")
	osc("volume", "backup", "create", "--snapshot", "snap", "--name", "three", "db")
	has(t, osc("volume", "backup", "list"), "one", "two", "three", "available")
	has(t, osc("volume", "backup", "show", "two"), "two", "is_incremental")
	has(t, c.run(t, "alice", false, "openstack", "volume", "backup", "set", "--state", "error", "one"), "set operations failed", "Policy doesn't allow")
	admin("volume", "backup", "set", "--state", "error", "one")
	has(t, osc("volume", "backup", "list", "--status", "error"), "one")
	osc("volume", "backup", "delete", "one")
	has(t, c.run(t, "alice", false, "openstack", "volume", "backup", "delete", "--force", "two"), "two")
	admin("volume", "backup", "delete", "--force", "two")
	has(t, admin("volume", "service", "list"), "cinder-backup", "node1@cairn")
	has(t, c.run(t, "bob", false, "openstack", "volume", "show", "db"), "No volume")
	osc("volume", "snapshot", "delete", "snap")
	osc("volume", "delete", "db")
	lacks(t, osc("volume", "list"), "db")
}
