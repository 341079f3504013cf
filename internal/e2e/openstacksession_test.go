package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/nbd"
)

const sessionPage = "../cinderapi/SESSION.md"

const sessionTitle = `# A session of the stock clients

What Debian's python3-cinderclient and python3-openstackclient print when they drive a Cairn agent. The test
TestOpenStackSession runs this session, compares each restored volume byte for byte with what was written, and fails
when an answer differs from this page, but for IDs, times and the address.
`

// TestOpenStackSession is the whole chapter: each kind of backup and restore, quotas, records, and
// what goes wrong, by the stock clients. What they print is a page of the docs.
func TestOpenStackSession(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	t.Parallel() // the clients spend most of their time in starting, and waiting
	newCloud(t).play(t)
}

// TestOpenStackSessionPostgres is the same with the catalog in PostgreSQL: no client sees a difference.
func TestOpenStackSessionPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	t.Parallel() // the clients spend most of their time in starting, and waiting
	const database = "postgres"
	db := pgtest.New(t)
	c := newCloud(t, "--catalog", catalogAt(t, db, database))
	c.database = db.URL(database)
	c.play(t)
	if files, gerr := filepath.Glob(c.path("state", "catalog.db*")); gerr != nil || len(files) > 0 {
		t.Errorf("there is a catalog in the state folder as well: %v, %v", files, gerr)
	}
}

// play runs the session and compares it with the page.
func (c *cloud) play(t *testing.T) {
	t.Helper()
	s := c.session
	content := make([]byte, 12*mib)

	s.chapter("Full backup", "A volume, made, written to by its guest, and backed up.")
	c.did("demo", "openstack", "volume", "create", "--size", "1", "--property", "role=database", "disk")
	volume := c.value("demo", volumeKind, "disk", "id")
	c.fill(volume, content, 0, 8*mib)
	c.did("demo", "cinder", "list")
	full := c.backedUp("demo", "monday", "disk")
	c.did("demo", "cinder", "backup-list")
	c.did("demo", "cinder", "backup-show", "monday")
	c.did("demo", "openstack", "volume", "backup", "list")
	c.did("demo", "openstack", "volume", "backup", "show", full.ID)
	c.did("demo", "cinder", "show", volume)

	s.chapter("Incremental backup", "It reads only what changed.")
	c.fill(volume, content, 2*mib, mib)
	increment := c.backedUp("demo", "tuesday", "disk", "--incremental", "--metadata", "ticket=4711")
	if increment.BytesRead > 3*mib || increment.Parent != full.ID {
		t.Errorf("the incremental read %d bytes and starts from %q", increment.BytesRead, increment.Parent)
	}
	c.did("demo", "cinder", "backup-show", "tuesday")
	c.did("demo", "openstack", "volume", "create", "--size", "1", "new")
	c.refused("demo", "No backups available to do an incremental backup", "cinder", "backup-create", "new", "--incremental")

	s.chapter("Volume in use", "A guest that is connected keeps its volume; its backup takes --force.")
	conn, err := nbd.Dial(t.Context(), c.plane(volume).URI, nbd.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.did("demo", "cinder", "list")
	c.refused("demo", "Backing up an in-use volume must use the force flag", "cinder", "backup-create", "disk")
	inUse := c.backedUp("demo", "in-use", "disk", "--force", "--incremental")
	if err = conn.Close(); err != nil {
		t.Fatal(err)
	}
	c.until("the volume is not in use", func(ctx context.Context) (bool, error) {
		v, verr := c.control.Volume(ctx, volume)
		return !v.InUse, verr
	})

	s.chapter("Snapshot", "A backup of a point in time, made later.")
	c.did("demo", "openstack", "volume", "snapshot", "create", "--volume", "disk", "noon")
	snapshot := c.value("demo", "volume snapshot", "noon", "id")
	atNoon := append([]byte(nil), content...)
	c.fill(volume, content, 4*mib, mib)
	ofSnapshot := c.backedUp("demo", "noon", "disk", "--snapshot-id", snapshot)
	c.did("demo", "cinder", "snapshot-list", "--volume-id", volume)
	c.did("demo", "cinder", "snapshot-show", snapshot)

	s.chapter("An administrator for a tenant", "With the tenant's name and the address as old scripts have it.")
	args := []string{"cinder", "--os-auth-url", "http://" + c.addr + "/v2", "--os-tenant-name", "demo", "--os-username", "admin", "--os-password", "admin-secret"}
	c.did("admin", append(args, "backup-create", volume, "--name", "by-admin")...)
	c.quiet()
	c.did("demo", "cinder", "backup-list")
	if b := c.named("by-admin"); b.Project != full.Project {
		t.Errorf("what an administrator made for a tenant belongs to %s", b.Project)
	}

	s.chapter("Restore", "To a new volume, and to one that is there.")
	c.did("demo", "cinder", "backup-restore", "tuesday")
	c.quiet()
	before := append([]byte(nil), content...)
	copy(before[4*mib:5*mib], atNoon[4*mib:5*mib])
	restored := c.value("demo", volumeKind, "restore_backup_"+increment.ID, "id")
	c.holds(restored, before, "the incremental, restored to a new volume")
	if got := c.value("demo", volumeKind, restored, "properties"); !strings.Contains(got, "role:database") {
		t.Errorf("the restored volume has the properties %s", got)
	}
	target := c.value("demo", volumeKind, "new", "id")
	c.did("demo", "cinder", "backup-restore", ofSnapshot.ID, "--volume", "new")
	c.quiet()
	c.holds(target, atNoon, "the snapshot's backup, restored to an existing volume")
	c.did("demo", "cinder", "list")
	c.did("demo", "openstack", "volume", "delete", restored)
	if got := c.value("demo", volumeKind, restored, "id"); got != "" {
		t.Errorf("the deleted volume is still there: %s", got)
	}

	s.chapter("Delete", "No backup hangs on another: a full one can go before its incrementals.")
	c.did("demo", "cinder", "backup-delete", "monday")
	c.did("demo", "openstack", "volume", "backup", "delete", inUse.ID)
	c.did("demo", "cinder", "backup-list")
	c.did("demo", "cinder", "backup-restore", "tuesday", "--volume", "new")
	c.quiet()
	c.holds(target, before, "an incremental whose full backup was deleted")

	s.chapter("Cancel a backup", "A backup that is being made ends with a forced delete, which is an administrator's.")
	c.did("demo", "openstack", "volume", "create", "--size", "1", "large")
	large := c.value("demo", volumeKind, "large", "id")
	c.fill(large, make([]byte, 200*mib), 0, 200*mib)
	c.did("demo", "cinder", "backup-create", "large", "--name", "long")
	long := c.named("long")
	c.refused("demo", "Backup status must be available or error", "cinder", "backup-delete", "long")
	c.did("admin", "openstack", "volume", "backup", "delete", "--force", long.ID)
	c.until("the canceled backup is gone", func(ctx context.Context) (bool, error) {
		_, berr := c.control.Backup(ctx, long.ID)
		return berr != nil, nil
	})
	c.quiet()
	c.did("demo", "cinder", "list")

	s.chapter("Cancel a restore", "An administrator sets the backup's state; nobody knows then what the volume holds.")
	c.did("demo", "cinder", "backup-create", "large", "--name", "long") // takes the only slot for jobs
	c.did("demo", "cinder", "backup-restore", "tuesday", "--volume", "new")
	c.did("demo", "cinder", "backup-list")
	c.did("admin", "cinder", "backup-reset-state", "--state", "available", increment.ID)
	c.until("the restore has ended", func(ctx context.Context) (bool, error) {
		jobs, jerr := c.control.Jobs(ctx, 0)
		return jobs[len(jobs)-1].State.Final(), jerr
	})
	c.did("demo", "cinder", "list")
	c.refused("demo", "Volume to be restored to must be available", "cinder", "backup-restore", "tuesday", "--volume", "new")
	c.did("admin", "openstack", "volume", "backup", "delete", "--force", c.named("long").ID)
	c.quiet()
	c.did("admin", "cinder", "reset-state", "--state", "available", target)
	c.did("demo", "cinder", "backup-restore", "tuesday", "--volume", "new")
	c.quiet()
	c.holds(target, before, "a volume whose restore was canceled, restored again")

	s.chapter("Quotas", "Of a project, whoever asks for the backup in it.")
	demo := full.Project
	c.did("admin", "cinder", "quota-show", demo)
	c.did("admin", "cinder", "quota-update", "--backups", "4", "--backup-gigabytes", "4", demo)
	c.did("admin", "cinder", "quota-usage", demo)
	c.backedUp("demo", "fourth", "new")
	c.refused("demo", "Maximum number of backups allowed (4) exceeded", "cinder", "backup-create", "new")
	c.did("admin", "cinder", "quota-update", "--backups", "10", demo)
	c.refused("demo", "Requested backup exceeds allowed Backup gigabytes quota. Requested 1G, quota is 4G and 4G has been consumed.", "cinder", "backup-create", "new")
	c.did("admin", "cinder", "quota-update", "--backup-gigabytes", "-1", demo)
	c.refused("demo", "Policy doesn't allow", "cinder", "quota-update", "--backups", "100", demo)

	s.chapter("What another project sees", "Nothing.")
	c.did("other", "cinder", "backup-list")
	c.refused("other", "exists", "openstack", "volume", "backup", "show", increment.ID)
	c.refused("other", "No volume with a name or ID of", "cinder", "backup-create", volume)

	s.chapter("Names and states", "")
	c.did("demo", "cinder", "backup-update", "--name", "tuesday-noon", "tuesday")
	c.did("demo", "openstack", "volume", "backup", "show", "tuesday-noon")
	c.did("admin", "openstack", "volume", "backup", "set", "--state", "error", increment.ID)
	c.refused("demo", "Backup status must be available", "cinder", "backup-restore", "tuesday-noon")
	c.did("admin", "cinder", "backup-reset-state", "--state", "available", increment.ID)

	s.chapter("Export, loss of the catalog, import", "The agent finds its backups again by itself; a record that was exported also comes in under another ID.")
	exported := c.did("admin", "cinder", "backup-export", increment.ID)
	c.loseCatalog()
	c.did("demo", "cinder", "backup-list")
	service, record := exportedRecord(t, exported)
	c.did("admin", "cinder", "backup-import", service, record)
	renamed, id := underAnotherID(t, record)
	c.did("admin", "cinder", "backup-import", service, renamed)
	c.did("demo", "cinder", "backup-restore", id, "--volume", "new")
	c.quiet()
	c.holds(target, before, "a backup that was imported under another ID")
	c.did("demo", "cinder", "backup-delete", increment.ID)
	c.did("demo", "cinder", "backup-restore", id, "--volume", "new")
	c.quiet()
	c.holds(target, before, "an imported backup whose original was deleted")
	c.refused("admin", "was changed", "cinder", "backup-import", service, forged(t, record))
	c.refused("admin", "not whole", "cinder", "backup-import", service, record[:len(record)/8*4])
	c.refused("demo", "Policy doesn't allow", "cinder", "backup-import", service, record)

	s.chapter("Services", "")
	c.did("admin", "cinder", "service-list")
	c.did("admin", "openstack", "volume", "service", "list")
	c.refused("demo", "Policy doesn't allow", "cinder", "service-list")
	s.compare(t, sessionTitle, sessionPage)
}

// exportedRecord takes the record out of what the client printed.
func exportedRecord(t *testing.T, printed string) (service, url string) {
	t.Helper()
	for line := range strings.Lines(printed) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		switch strings.TrimSpace(cells[1]) {
		case "backup_service":
			service = strings.TrimSpace(cells[2])
		case "backup_url":
			url = strings.TrimSpace(cells[2])
		}
	}
	if service == "" || url == "" {
		t.Fatalf("no record in\n%s", printed)
	}
	return service, url
}

// changed is a record with something changed in its JSON.
func changed(t *testing.T, record string, change func(map[string]any)) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(record)
	var all map[string]any
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(all)
	if data, err = json.MarshalIndent(all, "", " "); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(data)
}

func underAnotherID(t *testing.T, record string) (changedRecord, id string) {
	t.Helper()
	id = uuid.NewString()
	return changed(t, record, func(m map[string]any) { m["id"] = id }), id
}

func forged(t *testing.T, record string) string {
	t.Helper()
	return changed(t, record, func(m map[string]any) {
		m["id"] = uuid.NewString()
		inner, ok := m["record"].(map[string]any)
		if !ok {
			t.Fatal("a record without its signed part")
		}
		inner["display_name"] = fmt.Sprint(inner["display_name"], " of somebody else")
	})
}
