package cinderapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// things makes one of each thing of alice's.
func (s *server) things(t *testing.T) (volume, snapshot, backup string) {
	t.Helper()
	volume = s.newVolume(t, "alice", "db")
	snapshot = str(s.as(t, "alice", "", "POST", "/snapshots", `{"snapshot":{"volume_id":"`+volume+`","name":"snap","metadata":{"a":"1"}}}`).want(t, 202, "snapshot"), "id")
	s.as(t, "alice", "", "PUT", "/volumes/"+volume+"/metadata", `{"metadata":{"a":"1"}}`).want(t, 200, "metadata")
	return volume, snapshot, s.newBackup(t, "alice", volume, "one")
}

// member is a call about one thing: METHOD path, with V, S and B for the IDs.
type member struct {
	method, path, body string
	kind               string // whose 404 it is
	status             int    // for the owner
	admin              bool   // for administrators alone
}

var members = []member{
	{"GET", "/volumes/V", "", "Volume", 200, false},
	{"PUT", "/volumes/V", `{"volume":{"name":"n"}}`, "Volume", 200, false},
	{"GET", "/volumes/V/encryption", "", "Volume", 200, false},
	{"GET", "/volumes/V/metadata", "", "Volume", 200, false},
	{"GET", "/volumes/V/metadata/a", "", "Volume", 200, false},
	{"POST", "/volumes/V/metadata", `{"metadata":{"b":"2"}}`, "Volume", 200, false},
	{"PUT", "/volumes/V/metadata", `{"metadata":{"a":"2"}}`, "Volume", 200, false},
	{"PUT", "/volumes/V/metadata/a", `{"meta":{"a":"2"}}`, "Volume", 200, false},
	{"DELETE", "/volumes/V/metadata/a", "", "Volume", 200, false},
	{"POST", "/volumes/V/action", `{"os-extend":{"new_size":"9"}}`, "Volume", 202, false},
	{"POST", "/volumes/V/action", `{"os-set_bootable":{"bootable":"true"}}`, "Volume", 200, false},
	{"POST", "/volumes/V/action", `{"os-reset_status":{"status":"error"}}`, "Volume", 202, true},
	{"POST", "/volumes/V/action", `{"os-force_delete":null}`, "Volume", 202, true},
	{"DELETE", "/volumes/V?cascade=True", "", "Volume", 202, false},
	{"POST", "/volumes", `{"volume":{"source_volid":"V"}}`, "Volume", 202, false},
	{"POST", "/volumes", `{"volume":{"snapshot_id":"S"}}`, "Snapshot", 202, false},
	{"POST", "/volumes", `{"volume":{"backup_id":"B"}}`, "Backup", 202, false},
	{"POST", "/snapshots", `{"snapshot":{"volume_id":"V"}}`, "Volume", 202, false},
	{"GET", "/snapshots/S", "", "Snapshot", 200, false},
	{"PUT", "/snapshots/S", `{"snapshot":{"name":"n"}}`, "Snapshot", 200, false},
	{"GET", "/snapshots/S/metadata", "", "Snapshot", 200, false},
	{"DELETE", "/snapshots/S/metadata/a", "", "Snapshot", 200, false},
	{"POST", "/snapshots/S/action", `{"os-reset_status":{"status":"error"}}`, "Snapshot", 202, true},
	{"POST", "/snapshots/S/action", `{"os-force_delete":{}}`, "Snapshot", 202, true},
	{"DELETE", "/snapshots/S", "", "Snapshot", 202, false},
	{"POST", "/backups", `{"backup":{"volume_id":"V"}}`, "Volume", 202, false},
	{"GET", "/backups/B", "", "Backup", 200, false},
	{"PUT", "/backups/B", `{"backup":{"name":"n"}}`, "Backup", 200, false},
	{"POST", "/backups/B/restore", `{"restore":{}}`, "Backup", 202, false},
	{"POST", "/backups/B/restore", `{"restore":null}`, "Backup", 202, false},
	{"GET", "/backups/B/export_record", "", "Backup", 200, true},
	{"POST", "/backups/B/action", `{"os-reset_status":{"status":"error"}}`, "Backup", 202, true},
	{"POST", "/backups/B/action", `{"os-force_delete":{}}`, "Backup", 202, true},
	{"DELETE", "/backups/B", "", "Backup", 202, false},
}

// TestVisibility makes each call about one thing as its owner, as somebody else
// and as an administrator, and about a thing that is not there.
func TestVisibility(t *testing.T) {
	for _, m := range members {
		name := m.method + " " + m.path + " " + m.body
		ask := func(t *testing.T, caller string, exists bool) (reply, string) {
			t.Helper()
			s := newServer(t)
			v, sn, b := s.things(t)
			if !exists {
				v, sn, b = uuid.NewString(), uuid.NewString(), uuid.NewString()
			}
			ids := strings.NewReplacer("/V", "/"+v, `"V"`, `"`+v+`"`, "/S", "/"+sn, `"S"`, `"`+sn+`"`, "/B", "/"+b, `"B"`, `"`+b+`"`)
			before := s.state()
			got := s.as(t, caller, "3.60", m.method, ids.Replace(m.path), ids.Replace(m.body))
			if got.status >= 400 && s.state() != before {
				t.Errorf("%s as %s changed something, with %d", name, caller, got.status)
			}
			return got, map[string]string{"Volume": v, "Snapshot": sn, "Backup": b}[m.kind]
		}
		if got, _ := ask(t, "root", true); got.status != m.status {
			t.Errorf("%s as root: %d %s, want %d", name, got.status, got.raw, m.status)
		}
		got, _ := ask(t, "alice", true)
		other, id := ask(t, "bob", true)
		absent, gone := ask(t, "bob", false)
		want := NotFound(m.kind, id).Message
		if m.admin {
			want = "Policy doesn't allow"
			if got.status != http.StatusForbidden || !strings.Contains(got.raw, want) {
				t.Errorf("%s as its owner: %d %s", name, got.status, got.raw)
			}
		} else if got.status != m.status {
			t.Errorf("%s as its owner: %d %s, want %d", name, got.status, got.raw, m.status)
		}
		if !strings.Contains(other.raw, want) || other.status < 400 {
			t.Errorf("%s as bob: %d %s, want %q", name, other.status, other.raw, want)
		}
		if strings.ReplaceAll(other.raw, id, gone) != absent.raw || other.status != absent.status {
			t.Errorf("%s tells what is there: %d %s and %d %s", name, other.status, other.raw, absent.status, absent.raw)
		}
	}
}

func TestListsOfProjects(t *testing.T) {
	s := newServer(t)
	s.things(t)
	s.newBackup(t, "bob", s.newVolume(t, "bob", "theirs"), "bobs")
	for _, tt := range []struct {
		caller, query               string
		volumes, snapshots, backups int
	}{
		{"alice", "", 1, 1, 1},
		{"alice", "?all_tenants=1", 1, 1, 1},
		{"bob", "?all_tenants=True", 1, 0, 1},
		{"root", "", 1, 1, 1},
		{"root", "?all_tenants=0", 1, 1, 1},
		{"root", "?all_tenants=1", 2, 1, 2},
		{"root", "?all_tenants=1&project_id=" + projectB, 1, 0, 1},
	} {
		for plural, want := range map[string]int{"volumes": tt.volumes, "snapshots": tt.snapshots, "backups": tt.backups} {
			for _, tail := range []string{"", "/detail"} {
				if got := s.as(t, tt.caller, "3.70", "GET", "/"+plural+tail+tt.query, "").list(t, plural); len(got) != want {
					t.Errorf("%s%s%s as %s: %d, want %d", plural, tail, tt.query, tt.caller, len(got), want)
				}
			}
		}
	}
	// Nobody filters their way to another project.
	if text := s.as(t, "alice", "3.70", "GET", "/backups?project_id="+projectB, "").fault(t, 400); !strings.Contains(text, "Invalid filters project_id") {
		t.Error(text)
	}
	if n := len(s.as(t, "alice", "3.0", "GET", "/backups?project_id="+projectB, "").list(t, "backups")); n != 1 {
		t.Errorf("%d backups", n)
	}
	if text := s.as(t, "alice", "", "GET", "/volumes?all_tenants=maybe", "").fault(t, 400); !strings.Contains(text, "all_tenants") {
		t.Error(text)
	}
}
