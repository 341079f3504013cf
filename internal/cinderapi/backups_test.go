package cinderapi

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestBackups goes the way of a backup, and has what is refused on it.
func TestBackups(t *testing.T) {
	s := newServer(t)
	vol, snap, full := s.things(t)
	theirs := s.newVolume(t, "bob", "theirs")
	theirSnap := str(s.as(t, "bob", "", "POST", "/snapshots", `{"snapshot":{"volume_id":"`+theirs+`"}}`).want(t, 202, "snapshot"), "id")
	create := func(body string) reply {
		return s.as(t, "alice", "3.51", "POST", "/backups", `{"backup":{"volume_id":"`+vol+`",`+body+`}}`)
	}
	id := str(create(`"snapshot_id":"`+strings.ToUpper(snap)+`","incremental":"yes","name":" two ","metadata":{"k":"v"},"availability_zone":"nova"`).want(t, 202, "backup"), "id")
	b := s.as(t, "alice", "3.70", "GET", "/backups/"+id, "").want(t, 200, "backup")
	if b["snapshot_id"] != snap || b["is_incremental"] != true || b["name"] != "two" || b["status"] != "available" {
		t.Errorf("backup %v", b)
	}
	if b := s.as(t, "alice", "", "GET", "/backups/"+full, "").want(t, 200, "backup"); b["has_dependent_backups"] != true {
		t.Errorf("parent %v", b)
	}
	s.as(t, "alice", "3.43", "PUT", "/backups/"+id, `{"backup":{"description":"d","metadata":{"a":"b"}}}`).want(t, 200, "backup")
	if b := s.as(t, "alice", "3.70", "GET", "/backups/"+id, "").want(t, 200, "backup"); b["description"] != "d" || b["name"] != "two" {
		t.Errorf("backup %v", b)
	}

	if text := create(`"snapshot_id":"`+theirSnap+`"`).fault(t, 404); text != NotFound("Snapshot", theirSnap).Message {
		t.Error(text)
	}
	restore := func(caller, body string) reply {
		return s.as(t, caller, "", "POST", "/backups/"+id+"/restore", `{"restore":`+body+`}`)
	}
	if text := restore("alice", `{"volume_id":"`+theirs+`"}`).fault(t, 404); text != NotFound("Volume", theirs).Message {
		t.Error(text)
	}
	r := restore("alice", `{"volume_id":null,"name":null}`).want(t, 202, "restore")
	if r["volume_name"] != "restore_backup_"+id || r["backup_id"] != id {
		t.Errorf("restore %v", r)
	}
	if v := s.as(t, "alice", "", "GET", "/volumes/"+str(r, "volume_id"), "").want(t, 200, "volume"); v["size"] != 2.0 {
		t.Errorf("restored %v", v)
	}
	restore("root", `{"volume_id":"`+theirs+`"}`).want(t, 202, "restore") // an administrator sees both

	s.as(t, "root", "", "POST", "/backups/"+id+"/action", `{"os-reset_status":{"status":"ERROR"}}`).want(t, 202, "")
	if text := restore("alice", `{}`).fault(t, 400); text != "Invalid backup: Backup status must be available" {
		t.Error(text)
	}
	s.hang = true
	slow := s.newBackup(t, "alice", vol, "slow")
	if text := s.as(t, "alice", "", "DELETE", "/backups/"+slow, "").fault(t, 400); text != "Invalid backup: Backup status must be available or error" {
		t.Error(text)
	}
	s.as(t, "root", "", "POST", "/backups/"+slow+"/action", `{"os-force_delete":null}`).want(t, 202, "")
	s.as(t, "alice", "", "GET", "/backups/"+slow, "").fault(t, 404)
}

// TestRecords exports a record and imports it under another ID.
func TestRecords(t *testing.T) {
	s := newServer(t)
	_, _, id := s.things(t)
	r := s.as(t, "root", "", "GET", "/backups/"+id+"/export_record", "").want(t, 200, "backup-record")
	body := func(url string) string {
		return `{"backup-record":{"backup_service":"` + str(r, "backup_service") + `","backup_url":"` + url + `"}}`
	}
	if text := s.as(t, "root", "", "POST", "/backups/import_record", body(str(r, "backup_url"))).fault(t, 400); !strings.Contains(text, "already exists") {
		t.Error(text)
	}
	j, err := base64.StdEncoding.DecodeString(str(r, "backup_url"))
	if err != nil {
		t.Fatal(err)
	}
	var b Backup
	if err = json.Unmarshal(j, &b); err != nil || b.ID != id {
		t.Fatal(b, err)
	}
	b.ID = uuid.NewString()
	if j, err = json.Marshal(b); err != nil {
		t.Fatal(err)
	}
	url := base64.StdEncoding.EncodeToString(j)
	s.as(t, "alice", "", "POST", "/backups/import_record", body(url)).fault(t, 403)
	s.entries = nil
	got := s.as(t, "root", "", "POST", "/backups/import_record", body(url)).want(t, 201, "backup")
	if got["id"] != b.ID || got["name"] != "one" || len(got) != 3 {
		t.Errorf("import: %v", got)
	}
	if len(s.entries) != 1 || s.entries[0].Object != (Object{"backup", b.ID}) || s.entries[0].Action != "backup.import" {
		t.Errorf("audited %+v", s.entries)
	}
}

// TestCascade deletes a volume with its snapshots, or none of them.
func TestCascade(t *testing.T) {
	s := newServer(t)
	vol, snap, _ := s.things(t)
	s.as(t, "alice", "", "DELETE", "/volumes/"+vol, "").fault(t, 400)
	if err := s.ResetVolume(t.Context(), vol, "in-use"); err != nil {
		t.Fatal(err)
	}
	if text := s.as(t, "alice", "", "DELETE", "/volumes/"+vol+"?cascade=True", "").fault(t, 400); !strings.Contains(text, `the current status is "in-use"`) {
		t.Error(text)
	}
	s.as(t, "alice", "", "GET", "/snapshots/"+snap, "").want(t, 200, "snapshot")
	s.as(t, "alice", "3.23", "DELETE", "/volumes/"+vol+"?force=True", "").fault(t, 403)
	s.as(t, "root", "3.23", "DELETE", "/volumes/"+vol+"?force=True&cascade=True", "").want(t, 202, "")
	s.as(t, "alice", "", "GET", "/snapshots/"+snap, "").fault(t, 404)
	s.as(t, "alice", "", "GET", "/volumes/"+vol, "").fault(t, 404)
}

// TestExtendInUse extends a volume that is in use, which is so since 3.42.
func TestExtendInUse(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "alice", "db")
	if err := s.ResetVolume(t.Context(), vol, "in-use"); err != nil {
		t.Fatal(err)
	}
	body := `{"os-extend":{"new_size":9}}`
	s.as(t, "alice", "3.41", "POST", "/volumes/"+vol+"/action", body).fault(t, 400)
	s.as(t, "alice", "3.42", "POST", "/volumes/"+vol+"/action", body).want(t, 202, "")
	if v := s.as(t, "alice", "", "GET", "/volumes/"+vol, "").want(t, 200, "volume"); v["size"] != 9.0 {
		t.Error(v)
	}
	s.as(t, "alice", "3.65", "POST", "/snapshots", `{"snapshot":{"volume_id":"`+vol+`"}}`).fault(t, 400)
	s.as(t, "alice", "3.66", "POST", "/snapshots", `{"snapshot":{"volume_id":"`+vol+`","force":"t"}}`).want(t, 202, "snapshot")
}
