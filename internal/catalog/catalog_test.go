package catalog

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func openTest(t *testing.T) (*Catalog, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "odd name ?#%.db")
	c, err := Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, name
}

func reopen(t *testing.T, c *Catalog, name string) *Catalog {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

var drawBackup = rapid.Custom(func(t *rapid.T) Backup {
	text := rapid.StringN(0, 20, 60)
	num := rapid.Int64Range(0, 1<<60)
	return Backup{
		ID: rapid.StringMatching(`[0-9a-f]{8}`).Draw(t, "id"), Name: text.Draw(t, "name"), Description: text.Draw(t, "description"),
		Project: text.Draw(t, "project"), Status: rapid.SampledFrom([]Status{Creating, Available, Failed, Deleting, Restoring}).Draw(t, "status"),
		Volume: text.Draw(t, "volume"), VolumeID: rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "volume_id"), SnapshotID: text.Draw(t, "snapshot"),
		Size: num.Draw(t, "size"), Incremental: rapid.Bool().Draw(t, "incremental"), Parent: text.Draw(t, "parent"),
		BytesRead: num.Draw(t, "read"), BytesAudited: num.Draw(t, "audited"), BytesChanged: num.Draw(t, "changed"), BytesNew: num.Draw(t, "new"),
		BytesStored: num.Draw(t, "stored"), BytesShards: num.Draw(t, "shards"),
		Duration: time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "duration")), FullCompareReason: text.Draw(t, "reason"),
		Created: time.Unix(0, rapid.Int64Range(1, 1<<61).Draw(t, "created")).UTC(), FailReason: text.Draw(t, "fail"), Warning: text.Draw(t, "warning"),
		Session: text.Draw(t, "session"), Checkpoint: text.Draw(t, "checkpoint"), Undecided: rapid.Bool().Draw(t, "undecided"),
		RetainUntil: moment(rapid.Int64Range(0, 1<<62).Draw(t, "retain until")),
		User:        text.Draw(t, "user"), Container: text.Draw(t, "container"), StoredAs: text.Draw(t, "stored as"), Unwanted: rapid.Bool().Draw(t, "unwanted"),
		Shown:       rapid.SampledFrom([]Status{"", Failed}).Draw(t, "shown"),
		Metadata:    rapid.SampledFrom([]map[string]string{nil, {"a": "b"}, {"ä": "", "x": "\x00"}}).Draw(t, "metadata"),
		VolumeNotes: rapid.SampledFrom([]json.RawMessage{nil, json.RawMessage(`{"name":"x"}`)}).Draw(t, "notes"),
		Updated:     moment(rapid.Int64Range(0, 1<<61).Draw(t, "updated")), DataTime: moment(rapid.Int64Range(0, 1<<61).Draw(t, "data time")),
	}
})

// What is put comes back, in order, also after a restart: against a map.
func TestBackups(t *testing.T) {
	c, name := openTest(t)
	model := map[string]Backup{}
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackup.Draw(t, "backup")
		if err := c.PutBackup(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		switch old := model[b.ID].Warning; {
		case strings.Contains(b.Warning, old):
		case strings.Contains(old, b.Warning):
			b.Warning = old
		default:
			b.Warning = old + "; " + b.Warning
		}
		if old, ok := model[b.ID]; ok { // these have their own ways to change
			b.Name, b.Description, b.Metadata, b.Unwanted, b.Shown = old.Name, old.Description, old.Metadata, old.Unwanted, old.Shown
		}
		model[b.ID] = b
		if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
			if err := c.RemoveBackup(t.Context(), b.ID); err != nil {
				t.Fatal(err)
			}
			delete(model, b.ID)
			if _, err := c.Backup(t.Context(), b.ID); !errors.Is(err, ErrNotFound) {
				t.Fatalf("removed backup: %v", err)
			}
			return
		}
		got, err := c.Backup(t.Context(), b.ID)
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Fatalf("got %+v, %v\nput %+v", got, err, b)
		}
	})
	c = reopen(t, c, name)
	all, err := c.Backups(t.Context())
	if err != nil || len(all) != len(model) {
		t.Fatalf("%d backups, %v; want %d", len(all), err, len(model))
	}
	undecided, ofV1 := 0, 0
	for i, b := range all {
		if !reflect.DeepEqual(b, model[b.ID]) {
			t.Errorf("got %+v\nput %+v", b, model[b.ID])
		}
		if i > 0 && b.Created.Before(all[i-1].Created) {
			t.Error("not in order")
		}
		if b.Undecided {
			undecided++
		}
		if b.VolumeID == "v1" {
			ofV1++
		}
	}
	if l, err := c.UndecidedBackups(t.Context()); err != nil || len(l) != undecided {
		t.Errorf("%d undecided, %v; want %d", len(l), err, undecided)
	}
	if l, err := c.BackupsOf(t.Context(), "v1"); err != nil || len(l) != ofV1 {
		t.Errorf("%d of v1, %v; want %d", len(l), err, ofV1)
	}
}

// A warning that came while somebody had the record in hand stays.
func TestPutBackupWarned(t *testing.T) {
	for _, x := range []struct{ was, added, put, want string }{
		{"", "", "", ""},
		{"", "", "owed", "owed"},
		{"", "missed", "", "missed"},
		{"", "missed", "owed", "missed; owed"},
		{"owed", "missed", "owed", "owed; missed"},
		{"owed", "missed", "owed; missed", "owed; missed"},
		{"owed", "", "owed; more", "owed; more"},
	} {
		c, _ := openTest(t)
		if err := c.PutBackup(t.Context(), Backup{ID: "b", Status: Creating, Warning: x.was}); err != nil {
			t.Fatal(err)
		}
		if x.added != "" {
			if err := c.WarnBackup(t.Context(), "b", x.added); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.PutBackup(t.Context(), Backup{ID: "b", Status: Available, Warning: x.put}); err != nil {
			t.Fatal(err)
		}
		if b, err := c.Backup(t.Context(), "b"); err != nil || b.Warning != x.want || b.Status != Available {
			t.Errorf("%+v: %q, %v", x, b.Warning, err)
		}
	}
}

func TestBackupsNamed(t *testing.T) {
	c, _ := openTest(t)
	for i, name := range []string{"nightly", "nightly", "other", ""} {
		if err := c.PutBackup(t.Context(), Backup{ID: fmt.Sprint("id", i), Name: name, Status: Available, Created: time.Unix(int64(i), 0)}); err != nil {
			t.Fatal(err)
		}
	}
	for ref, want := range map[string]int{"nightly": 2, "other": 1, "id1": 1, "id9": 0, "id": 0} {
		if l, err := c.BackupsNamed(t.Context(), ref); err != nil || len(l) != want {
			t.Errorf("%q: %d backups, %v; want %d", ref, len(l), err, want)
		}
	}
}

func TestSetBackupStatus(t *testing.T) {
	c, _ := openTest(t)
	if err := c.PutBackup(t.Context(), Backup{ID: "b", Status: Available}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetBackupStatus(t.Context(), "b", Available, Restoring); err != nil {
		t.Fatal(err)
	}
	if err := c.SetBackupStatus(t.Context(), "b", Available, Deleting); !errors.Is(err, ErrNotFound) {
		t.Errorf("from a state that it is not in: %v", err)
	}
}

func TestBackupJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackup.Draw(t, "backup")
		b.Duration = b.Duration.Truncate(time.Millisecond)
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var got Backup
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		if d := got.Duration - b.Duration; d < -time.Microsecond || d > time.Microsecond {
			t.Fatalf("duration %v became %v", b.Duration, got.Duration)
		}
		got.Duration = b.Duration
		if !reflect.DeepEqual(got, b) {
			t.Fatalf("got %+v\nput %+v", got, b)
		}
	})
	data, err := json.Marshal(Backup{Duration: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for key := range strings.FieldsSeq("id name description status volume volume_id size incremental parent bytes_read bytes_audited bytes_changed bytes_new bytes_stored bytes_shards duration_seconds full_compare_reason created_at fail_reason") {
		if !strings.Contains(string(data), `"`+key+`":`) {
			t.Errorf("no %s in %s", key, data)
		}
	}
	if !strings.Contains(string(data), `"duration_seconds":1.5`) {
		t.Errorf("duration in %s", data)
	}
}

func TestJobs(t *testing.T) {
	c, name := openTest(t)
	states := []JobState{Queued, Running, Succeeded, JobFailed, Canceled}
	for i := range 20 {
		j := Job{
			ID: fmt.Sprintf("job%02d", i), Kind: BackupJob, State: states[i%5], Volume: "v", VolumeID: "id",
			Backup: "b", Target: "t", Owner: "o", Error: "e", Code: "c", Progress: Progress{Phase: "reading", Total: 7, Done: 3}, Result: json.RawMessage(`{"a":1}`),
			Created: time.Unix(int64(i), 5).UTC(), Started: time.Unix(int64(i), 6).UTC(),
		}
		if err := c.PutJob(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Job(t.Context(), j.ID); err != nil || !reflect.DeepEqual(got, j) {
			t.Fatalf("got %+v, %v\nput %+v", got, err, j)
		}
	}
	c = reopen(t, c, name)
	l, err := c.Jobs(t.Context(), 3)
	if err != nil || len(l) != 3 || l[0].ID != "job17" || l[2].ID != "job19" {
		t.Errorf("newest three: %+v, %v", l, err)
	}
	if l, err = c.UnfinishedJobs(t.Context()); err != nil || len(l) != 8 {
		t.Errorf("%d unfinished, %v", len(l), err)
	}
	if ierr := c.TrimJobs(t.Context(), 5); ierr != nil {
		t.Fatal(ierr)
	}
	// 15 to 19, and the unfinished ones before them.
	if l, err = c.Jobs(t.Context(), 100); err != nil || len(l) != 5+6 {
		t.Errorf("%d after trim, %v", len(l), err)
	}
	if _, err := c.Job(t.Context(), "job02"); !errors.Is(err, ErrNotFound) {
		t.Errorf("trimmed job: %v", err)
	}
}

func TestSmallRecords(t *testing.T) {
	c, name := openTest(t)
	ctx := t.Context()
	e := Export{Name: "x", Backup: "b", Overlay: true, Purpose: "p", Created: time.Unix(3, 4).UTC()}
	for _, err := range []error{
		c.PutExport(ctx, e), c.PutExport(ctx, Export{Name: "y"}), c.RemoveExport(ctx, "y"), c.RemoveExport(ctx, "z"),
		c.PutCheckpoint(ctx, Checkpoint{"c", "v", "b"}), c.PutCheckpoint(ctx, Checkpoint{"c", "w", "b"}), c.RemoveCheckpoint(ctx, "v", "c"),
		c.PutUnfinished(ctx, "v", "j"), c.PutUnfinished(ctx, "w", "j"), c.RemoveUnfinished(ctx, "v"),
		c.PutPin(ctx, Pin{"p", "b", "x", false}), c.PutPin(ctx, Pin{"p", "b", "x", true}), c.PutPin(ctx, Pin{"q", "b", "y", true}), c.RemovePin(ctx, "q"),
		c.SetSetting(ctx, "k", "1"), c.SetSetting(ctx, "k", "2"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c = reopen(t, c, name)
	if l, err := c.Exports(ctx); err != nil || !reflect.DeepEqual(l, []Export{e}) {
		t.Errorf("exports %+v, %v", l, err)
	}
	if l, err := c.Pins(ctx); err != nil || !reflect.DeepEqual(l, []Pin{{"p", "b", "x", true}}) {
		t.Errorf("pins %+v, %v", l, err)
	}
	if l, err := c.Checkpoints(ctx); err != nil || !reflect.DeepEqual(l, []Checkpoint{{"c", "w", "b"}}) {
		t.Errorf("checkpoints %+v, %v", l, err)
	}
	if l, err := c.Unfinished(ctx); err != nil || !reflect.DeepEqual(l, map[string]string{"w": "j"}) {
		t.Errorf("unfinished %+v, %v", l, err)
	}
	if v, err := c.Setting(ctx, "k"); err != nil || v != "2" {
		t.Errorf("setting %q, %v", v, err)
	}
	if v, err := c.Setting(ctx, "none"); err != nil || v != "" {
		t.Errorf("setting that is not there: %q, %v", v, err)
	}
}

func TestVersions(t *testing.T) {
	c, name := openTest(t)
	var mode, level string
	if err := c.db.QueryRowContext(t.Context(), `PRAGMA journal_mode`).Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal mode %q, %v", mode, err)
	}
	if err := c.db.QueryRowContext(t.Context(), `PRAGMA synchronous`).Scan(&level); err != nil || level != "2" {
		t.Errorf("synchronous %q, %v", level, err)
	}
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", fi.Mode(), err)
	}
	if _, err := c.db.ExecContext(t.Context(), fmt.Sprintf(`PRAGMA user_version = %d`, len(migrations)+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), name); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer catalog: %v", err)
	}
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte(strings.Repeat("not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), junk); err == nil || !strings.Contains(err.Error(), "move the file away") {
		t.Errorf("junk: %v", err)
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("a catalog was made in a folder that is not there")
	}
}

// A catalog of the first version keeps its records and gets what was added.
func TestUpgrade(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.db")
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		migrations[0], `PRAGMA user_version = 1`,
		`INSERT INTO jobs VALUES ('j', 'backup', 'failed', 'v', 'volume', 'b', '', 'o', 'e', '{}', '', 1, 2, 3)`,
	} {
		if _, err = db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err = db.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	j, err := c.Job(t.Context(), "j")
	if err != nil || j.Error != "e" || j.Code != "" || j.Finished.IsZero() {
		t.Errorf("%+v, %v", j, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A full disk is told as one, with where it is.
func TestFull(t *testing.T) {
	c, name := openTest(t)
	if _, err := c.db.ExecContext(t.Context(), `PRAGMA max_page_count = 1`); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = c.PutJob(t.Context(), Job{ID: strconv.Itoa(i), Error: strings.Repeat("x", 4096)})
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space on the disk of "+name) {
		t.Error(err)
	}
}

func TestConcurrent(t *testing.T) {
	c, _ := openTest(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range 10 {
				id := fmt.Sprint(i, "-", k)
				if err := c.PutBackup(t.Context(), Backup{ID: id, Status: Creating}); err != nil {
					t.Error(err)
				}
				if _, err := c.Backups(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, err := c.Backups(t.Context()); err != nil || len(l) != 40 {
		t.Errorf("%d backups, %v", len(l), err)
	}
}
