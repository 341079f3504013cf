package cinderapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The things of the golden files.
const (
	goldVolume   = "11111111-1111-4111-8111-111111111111"
	goldSnapshot = "22222222-2222-4222-8222-222222222222"
	goldBackup   = "33333333-3333-4333-8333-333333333333"
)

func (m *memory) gold() {
	at := time.Date(2026, 1, 2, 15, 4, 5, 678901000, time.UTC)
	user := callers["alice"].UserID
	m.volumes[goldVolume] = Volume{
		ID: goldVolume, Project: projectA, User: user, Name: "db", Status: "in-use", Size: 2, Type: "plain", Bootable: true,
		Metadata: map[string]string{"tier": "1"}, Host: "node1@cairn#pool", Created: at, Updated: at.Add(time.Minute), Attached: "process 4711 (qemu)",
	}
	m.snapshots[goldSnapshot] = Snapshot{ID: goldSnapshot, Project: projectA, User: user, Name: "snap", Status: "available", VolumeID: goldVolume, Size: 2, Created: at}
	m.backups[goldBackup] = Backup{
		ID: goldBackup, Project: projectA, User: user, Name: "one", Description: "nightly", Status: "available", VolumeID: goldVolume, SnapshotID: goldSnapshot,
		Container: "box", Size: 2, Objects: 7, Incremental: true, EncryptionKeyID: typeID, Metadata: map[string]string{"k": "v"},
		Created: at, Updated: at.Add(time.Hour), DataTime: at,
	}
}

// TestGolden compares whole bodies, per microversion and caller, with files in
// testdata: every key is one that clients with strict schemas have to know.
func TestGolden(t *testing.T) {
	s := newServer(t)
	s.gold()
	for _, tt := range []struct{ name, path string }{
		{"volume", "/volumes/" + goldVolume},
		{"volumes", "/volumes"},
		{"volumes-detail", "/volumes/detail"},
		{"summary", "/volumes/summary"},
		{"snapshot", "/snapshots/" + goldSnapshot},
		{"snapshots", "/snapshots"},
		{"backup", "/backups/" + goldBackup},
		{"backups", "/backups"},
		{"backups-detail", "/backups/detail"},
		{"quota", "/os-quota-sets/" + projectA},
		{"usage", "/os-quota-sets/" + projectA + "?usage=True"},
		{"defaults", "/os-quota-sets/" + projectA + "/defaults"},
		{"limits", "/limits"},
		{"services", "/os-services"},
		{"types", "/types/" + typeID},
		{"zones", "/os-availability-zone"},
		{"filters", "/resource_filters"},
	} {
		for _, caller := range []string{"alice", "root"} {
			var all bytes.Buffer
			last := ""
			for n := range minor(maxMinor + 1) {
				got := s.as(t, caller, n.String(), "GET", tt.path, "")
				var body bytes.Buffer
				if err := json.Indent(&body, []byte(got.raw), "", "  "); err != nil {
					t.Fatal(err)
				}
				// Only what differs from the version before.
				if body.String() != last {
					last = body.String()
					all.WriteString("== " + n.String() + "\n" + last + "\n")
				}
			}
			compare(t, filepath.Join("testdata", "golden", tt.name+"-"+caller+".txt"), all.Bytes())
		}
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		gl, wl := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		for i := range gl {
			if i >= len(wl) || gl[i] != wl[i] {
				t.Fatalf("%s, line %d: got %q; see the change with -update", file, i+1, gl[i])
			}
		}
		t.Fatalf("%s has %d lines more", file, len(wl)-len(gl))
	}
}

// TestChangedBodies has the keys of answers to changes, which show less than a
// look at the thing.
func TestChangedBodies(t *testing.T) {
	s := newServer(t)
	s.gold()
	const volume = "attachments availability_zone bootable consistencygroup_id created_at description encrypted id links metadata multiattach name replication_status size snapshot_id source_volid status updated_at user_id volume_type"
	const snapshot = "created_at description id metadata name size status updated_at volume_id"
	for _, tt := range []struct{ method, path, body, key, want string }{
		{"POST", "/volumes", `{"volume":{"size":1}}`, "volume", volume},
		{"PUT", "/volumes/" + goldVolume, `{"volume":{"name":"x"}}`, "volume", volume},
		{"POST", "/snapshots", `{"snapshot":{"volume_id":"` + goldVolume + `","force":true}}`, "snapshot", snapshot},
		{"PUT", "/snapshots/" + goldSnapshot, `{"snapshot":{"name":"x"}}`, "snapshot", snapshot},
		{"POST", "/backups", `{"backup":{"volume_id":"` + goldVolume + `","force":true}}`, "backup", "id links name"},
		{"POST", "/backups/" + goldBackup + "/restore", `{"restore":{}}`, "restore", "backup_id volume_id volume_name"},
	} {
		got := s.as(t, "alice", "", tt.method, tt.path, tt.body)
		o, ok := got.body[tt.key].(map[string]any)
		if keys := strings.Join(sortedKeys(o), " "); !ok || keys != tt.want || len(got.body) != 1 {
			t.Errorf("%s %s: %s", tt.method, tt.path, got.raw)
		}
	}
}
