package agent

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func at(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestKeep(t *testing.T) {
	var all []Backup
	for _, s := range []string{
		"2026-12-31 23:30", "2026-12-31 23:10", "2026-12-31 12:00", "2026-12-30 12:00", "2026-12-28 12:00", "2026-12-27 12:00", // Sunday
		"2026-11-30 12:00", "2026-11-29 12:00", "2025-06-01 12:00", "2024-06-01 12:00",
	} {
		all = append(all, Backup{ID: s, Created: at(t, s), Status: BackupAvailable})
	}
	for _, tt := range []struct {
		name string
		k    Keep
		want string // which of the ten stay
	}{
		{"last", Keep{Last: 2}, "1100000000"},
		{"hourly", Keep{Hourly: 3}, "1011000000"},
		{"daily", Keep{Daily: 3}, "1001100000"},
		{"weekly", Keep{Weekly: 2}, "1000010000"},
		{"monthly", Keep{Monthly: 3}, "1000001010"},
		{"yearly", Keep{Yearly: 9}, "1000000011"},
		{"more than there are", Keep{Last: 99}, "1111111111"},
		{"any reason", Keep{Last: 2, Yearly: 2}, "1100000010"},
		{"none", Keep{}, "0000000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []byte
			for _, d := range tt.k.Decide(all, time.UTC) {
				got = append(got, map[bool]byte{true: '1', false: '0'}[d.Keep])
				if d.Why == "" {
					t.Errorf("%s: no reason", d.Backup.ID)
				}
			}
			if string(got) != tt.want {
				t.Errorf("kept %s, want %s", got, tt.want)
			}
		})
	}
	// What is not a backup yet, or no more, neither counts nor goes.
	all[0].Status, all[1].Status = BackupCreating, BackupRestoring
	ds := Keep{Last: 1}.Decide(all, time.UTC)
	if len(ds) != 9 || !ds[0].Keep || ds[1].Keep || !strings.Contains(ds[0].Why, "restored") {
		t.Errorf("%+v", ds)
	}
}

// A policy that keeps more of something drops nothing that one that keeps less
// of it keeps, and forgetting twice is forgetting once.
func TestKeepGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []Backup
		for i := range rapid.IntRange(0, 40).Draw(t, "backups") {
			hours := rapid.IntRange(0, 24*800).Draw(t, "age")
			all = append(all, Backup{ID: strconv.Itoa(i), Status: BackupAvailable, Created: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).Add(-time.Duration(hours) * time.Hour)})
		}
		draw := func() Keep {
			n := func(s string) int { return rapid.IntRange(0, 5).Draw(t, s) }
			return Keep{n("last"), n("hourly"), n("daily"), n("weekly"), n("monthly"), n("yearly")}
		}
		kept := func(k Keep, of []Backup) (out []Backup) {
			for _, d := range k.Decide(of, time.UTC) {
				if d.Keep {
					out = append(out, d.Backup)
				}
			}
			return out
		}
		k := draw()
		more := k
		more.Daily++
		more.Last += 2
		once := kept(k, all)
		for _, b := range once {
			if !slices.ContainsFunc(kept(more, all), func(o Backup) bool { return o.ID == b.ID }) {
				t.Fatalf("%+v keeps backup %s of %s, and %+v does not", k, b.ID, b.Created, more)
			}
		}
		if twice := kept(k, once); len(twice) != len(once) {
			t.Fatalf("%d stay of %d when forgotten again", len(twice), len(once))
		}
	})
}
