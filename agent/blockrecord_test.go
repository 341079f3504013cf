package agent

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// edited is a record with its JSON changed.
func (r *rig) edited(record object, edit func(e object)) object {
	r.Helper()
	data, err := base64.StdEncoding.DecodeString(record.text("backup-record", "backup_url"))
	if err != nil {
		r.Fatal(err)
	}
	e := object{}
	if err = json.Unmarshal(data, &e); err != nil {
		r.Fatal(err)
	}
	edit(e)
	if data, err = json.Marshal(e); err != nil {
		r.Fatal(err)
	}
	return object{"backup-record": object{"backup_service": record.text("backup-record", "backup_service"), "backup_url": base64.StdEncoding.EncodeToString(data)}}
}

// set sets a field of the signed part.
func set(key string, value any) func(object) {
	return func(e object) {
		if m, ok := e["record"].(map[string]any); ok {
			m[key] = value
		}
	}
}

// loseCatalog starts the agent with an empty catalog.
func (r *rig) loseCatalog() {
	r.Helper()
	r.stopAgent()
	files, err := filepath.Glob(filepath.Join(r.dir, "agent", "catalog.db*"))
	if err != nil || len(files) == 0 {
		r.Fatal("no catalog", err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			r.Fatal(err)
		}
	}
	r.startAgent()
}

// A record can be imported again, under another ID as well, and nothing else of it can be
// changed.
func TestBlockRecords(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	data := noise(1 << 20)
	r.fill(v, data, 0)
	id := r.backedUp(ann, v, object{"name": "<first> & \u2028", "description": "words", "container": "box", "metadata": object{"a": "b"}})
	r.call(403, ann, "GET", "backups/"+id+"/export_record", nil)
	record := r.get(root, "backups/"+id+"/export_record")
	if s := record.text("backup-record", "backup_service"); !strings.HasPrefix(s, "cinder.backup.drivers") {
		t.Errorf("backup_service %q", s)
	}
	const path = "backups/import_record"
	r.call(403, ann, "POST", path, record)
	url := record.text("backup-record", "backup_url")
	for name, x := range map[string]object{
		"changed project":    r.edited(record, set("project_id", "b")),
		"changed volume":     r.edited(record, set("volume_id", uuid.NewString())),
		"changed backup":     r.edited(record, set("backup", uuid.NewString())),
		"changed name":       r.edited(record, set("display_name", "x")),
		"changed size":       r.edited(record, set("size", 1)),
		"changed repository": r.edited(record, set("repository", uuid.NewString())),
		"other version":      r.edited(record, set("version", 2)),
		"no signature":       r.edited(record, func(e object) { delete(e, "signature") }),
		"empty signature":    r.edited(record, func(e object) { e["signature"] = "" }),
		"more keys":          r.edited(record, func(e object) { e["more"] = 1 }),
		"no ID":              r.edited(record, func(e object) { e["id"] = "" }),
		"ID with a path":     r.edited(record, func(e object) { e["id"] = "../../x" }),
		"nothing":            r.edited(record, func(e object) { clear(e) }),
		"truncated":          {"backup-record": object{"backup_service": record.text("backup-record", "backup_service"), "backup_url": url[:len(url)/8*4]}},
		"not base64":         {"backup-record": object{"backup_service": record.text("backup-record", "backup_service"), "backup_url": "%%%%"}},
		"another service":    {"backup-record": object{"backup_service": "cinder.backup.drivers.swift", "backup_url": url}},
	} {
		if status, answer := r.try(root, "POST", path, x); status != 400 || answer.fault() == "" {
			t.Errorf("%s: %d %v", name, status, answer)
		}
	}

	// The same is there already; with another ID it is one more, also in another form of it.
	if got := r.call(201, root, "POST", path, record).text("backup", "id"); got != id {
		t.Errorf("imported as %s", got)
	}
	other := uuid.New()
	if got := r.call(201, root, "POST", path, r.edited(record, func(e object) { e["id"] = "{" + strings.ToUpper(other.String()) + "}" })).text("backup", "id"); got != other.String() {
		t.Errorf("imported as %s", got)
	}
	a, b := r.get(ann, "backups/"+id), r.get(ann, "backups/"+other.String())
	for _, key := range []string{"name", "description", "container", "volume_id", "size", "created_at", "data_timestamp", "status"} {
		if x, y := a.at("backup", key), b.at("backup", key); x != y {
			t.Errorf("%s: %v and %v", key, x, y)
		}
	}
	r.call(404, bob, "GET", "backups/"+other.String(), nil)

	// Deleting one leaves the other, whichever it is, and with the last the data go.
	r.call(202, ann, "DELETE", "backups/"+id, nil)
	r.becomes("backup", id, "gone")
	to := r.restoring(ann, other.String(), "")
	r.becomes("volume", to, "available")
	r.holds(to, data)
	r.call(201, root, "POST", path, record)
	r.becomes("backup", other.String(), "available")
	r.call(202, ann, "DELETE", "backups/"+other.String(), nil)
	r.becomes("backup", other.String(), "gone")
	to = r.restoring(ann, id, "")
	r.becomes("volume", to, "available")
	r.holds(to, data)
	r.becomes("backup", id, "available")

	// A lost catalog: the record brings back what the repository does not know.
	r.loseCatalog()
	r.becomes("backup", id, "available")
	r.call(201, root, "POST", path, r.edited(record, func(e object) { e["id"] = other.String() }))
	r.call(202, ann, "DELETE", "backups/"+id, nil)
	r.becomes("backup", id, "gone")
	r.loseCatalog()
	r.becomes("backup", id, "available") // the data are there: better twice than not at all
	r.call(202, ann, "DELETE", "backups/"+id, nil)
	r.becomes("backup", id, "gone")
	r.refused(400, "is not in the repository any more", root, "POST", path, record)

	// Both deleted at once: the data go with the last.
	id = r.backedUp(ann, v, nil)
	record = r.get(root, "backups/"+id+"/export_record")
	r.call(201, root, "POST", path, r.edited(record, func(e object) { e["id"] = other.String() }))
	done := make(chan int, 2)
	for _, x := range []string{id, other.String()} {
		go func() {
			status, _ := r.try(ann, "DELETE", "backups/"+x, nil)
			done <- status
		}()
	}
	if x, y := <-done, <-done; x != 202 || y != 202 {
		t.Errorf("%d, %d", x, y)
	}
	r.becomes("backup", id, "gone")
	r.becomes("backup", other.String(), "gone")
	r.refused(400, "is not in the repository any more", root, "POST", path, record)
}

// A record of another repository is refused, and says which it is of.
func TestBlockRecordElsewhere(t *testing.T) {
	r, other := apiRig(t, nil), apiRig(t, nil)
	v := r.disk(ann, nil)
	record := r.get(root, "backups/"+r.backedUp(ann, v, nil)+"/export_record")
	other.refused(400, "is of repository "+r.repo.Info().ID, root, "POST", "backups/import_record", record)
}

// Backups that are found in the repository have all that they had.
func TestBlockAdopted(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, object{"metadata": object{"role": "db"}, "volume_type": "encrypted"})
	r.fill(v, noise(1<<20), 0)
	snap := r.call(202, ann, "POST", "snapshots", object{"snapshot": object{"volume_id": v}}).text("snapshot", "id")
	full := r.backedUp(ann, v, object{"name": "one", "description": "words", "container": "box", "metadata": object{"a": "b"}, "snapshot_id": snap})
	inc := r.backedUp(ann, v, object{"incremental": true})
	before := map[string]object{}
	for _, id := range []string{full, inc} {
		before[id] = r.get(root, "backups/"+id)
	}
	used := r.get(ann, "os-quota-sets/a?usage=True").at("quota_set", "backups", "in_use")
	r.loseCatalog()
	for id, was := range before {
		r.becomes("backup", id, "available")
		is := r.get(root, "backups/"+id)
		m, ok := was.at("backup").(map[string]any)
		if !ok {
			t.Fatal(was)
		}
		for key, want := range m {
			if got := is.at("backup", key); key != "updated_at" && key != "links" && toText(got) != toText(want) {
				t.Errorf("%s of %s is %v, was %v", key, id, got, want)
			}
		}
	}
	if got := r.get(ann, "os-quota-sets/a?usage=True").at("quota_set", "backups", "in_use"); got != used {
		t.Errorf("%v backups count, were %v", got, used)
	}
	to := r.restoring(ann, inc, "")
	r.becomes("volume", to, "available")
	if got := r.get(ann, "volumes/"+to).at("volume", "metadata", "role"); got != "db" {
		t.Errorf("metadata: %v", got)
	}
	r.refused(400, "encrypted", ann, "POST", "volumes", object{"volume": object{"size": 1, "backup_id": inc, "volume_type": "__DEFAULT__"}})
}

func toText(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
