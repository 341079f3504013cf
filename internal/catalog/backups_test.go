package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var drawBackup = rapid.Custom(func(t *rapid.T) Backup {
	text := rapid.StringN(0, 20, 60).Filter(keepable)
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
		User:        text.Draw(t, "user"), Host: text.Draw(t, "host"), Container: text.Draw(t, "container"), StoredAs: text.Draw(t, "stored as"), Quiesced: rapid.Bool().Draw(t, "quiesced"), Unwanted: rapid.Bool().Draw(t, "unwanted"),
		Shown:       rapid.SampledFrom([]Status{"", Failed}).Draw(t, "shown"),
		Metadata:    rapid.SampledFrom([]map[string]string{nil, {"a": "b"}, {"ä": "", "x": "\x00"}}).Draw(t, "metadata"),
		VolumeNotes: rapid.SampledFrom([]json.RawMessage{nil, json.RawMessage(`{"name":"x"}`)}).Draw(t, "notes"),
		Updated:     moment(rapid.Int64Range(0, 1<<61).Draw(t, "updated")), DataTime: moment(rapid.Int64Range(0, 1<<61).Draw(t, "data time")),
	}
})

// What is put comes back, in order, also after a restart: against a map.
func TestBackups(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			where := place(t)
			c := openTest(t, where)
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
			c = reopen(t, c, where)
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
			checkListed(t, c, all)
			if l, err := c.UndecidedBackups(t.Context()); err != nil || len(l) != undecided {
				t.Errorf("%d undecided, %v; want %d", len(l), err, undecided)
			}
			if l, err := c.BackupsOf(t.Context(), "v1"); err != nil || len(l) != ofV1 {
				t.Errorf("%d of v1, %v; want %d", len(l), err, ofV1)
			}
		})
	}
}

// checkListed checks that lists have all but what may be large, which comes by itself.
func checkListed(t *testing.T, c *Catalog, all []Backup) {
	t.Helper()
	ids, metadata, of := []string{"none"}, map[string]map[string]string{}, map[string][]Backup{"": nil}
	for _, b := range all {
		ids = append(ids, b.ID)
		if len(b.Metadata) > 0 {
			metadata[b.ID] = b.Metadata
		}
		b.Metadata, b.VolumeNotes = nil, nil
		of[""] = append(of[""], b)
		if b.Project != "" {
			of[b.Project] = append(of[b.Project], b)
		}
	}
	for project, want := range of {
		if l, err := c.BackupsListed(t.Context(), project); err != nil || !reflect.DeepEqual(l, want) {
			t.Errorf("listed of project %q: %+v, %v, want %+v", project, l, err, want)
		}
	}
	for _, n := range []int{0, len(ids), 3 * metadataAtOnce} { // the same ones again and again
		asked, want := []string(nil), map[string]map[string]string{}
		for i := range n {
			id := ids[i%len(ids)]
			asked = append(asked, id)
			if m, ok := metadata[id]; ok {
				want[id] = m
			}
		}
		if got, err := c.BackupMetadata(t.Context(), asked); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("metadata of %d: %v, %v, want %v", n, got, err, want)
		}
	}
}

// Who is unwanted stays so when their record is written again, until they are wanted.
func TestWantBackup(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			b := Backup{ID: "b", Status: Deleting}
			must(t, c.PutBackup(t.Context(), b))
			must(t, c.UnwantBackup(t.Context(), "b", Deleting))
			must(t, c.PutBackup(t.Context(), b))
			if got, err := c.Backup(t.Context(), "b"); err != nil || !got.Unwanted {
				t.Errorf("unwanted: %v, %v", got.Unwanted, err)
			}
			must(t, c.WantBackup(t.Context(), "b"))
			must(t, c.WantBackup(t.Context(), "none"))
			if got, err := c.Backup(t.Context(), "b"); err != nil || got.Unwanted || got.Status != Deleting {
				t.Errorf("wanted: %+v, %v", got, err)
			}
		})
	}
}

// A warning that came while somebody had the record in hand stays.
func TestPutBackupWarned(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			for i, x := range []struct{ was, added, put, want string }{
				{"", "", "", ""},
				{"", "", "owed", "owed"},
				{"", "missed", "", "missed"},
				{"", "missed", "owed", "missed; owed"},
				{"owed", "missed", "owed", "owed; missed"},
				{"owed", "missed", "owed; missed", "owed; missed"},
				{"owed", "", "owed; more", "owed; more"},
			} {
				id := fmt.Sprint("b", i)
				must(t, c.PutBackup(t.Context(), Backup{ID: id, Status: Creating, Warning: x.was}))
				if x.added != "" {
					must(t, c.WarnBackup(t.Context(), id, x.added))
				}
				must(t, c.PutBackup(t.Context(), Backup{ID: id, Status: Available, Warning: x.put}))
				if b, err := c.Backup(t.Context(), id); err != nil || b.Warning != x.want || b.Status != Available {
					t.Errorf("%+v: %q, %v", x, b.Warning, err)
				}
			}
		})
	}
}

func TestBackupsNamed(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
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
		})
	}
}

func TestSetBackupStatus(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			if err := c.PutBackup(t.Context(), Backup{ID: "b", Status: Available}); err != nil {
				t.Fatal(err)
			}
			if err := c.SetBackupStatus(t.Context(), "b", Available, Restoring); err != nil {
				t.Fatal(err)
			}
			if err := c.SetBackupStatus(t.Context(), "b", Available, Deleting); !errors.Is(err, ErrNotFound) {
				t.Errorf("from a state that it is not in: %v", err)
			}
		})
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

func TestConcurrent(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
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
		})
	}
}
