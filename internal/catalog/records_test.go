package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestSmallRecords(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			where := place(t)
			c := openTest(t, where)
			ctx := t.Context()
			e := Export{Name: "x", Backup: "b", Overlay: true, Purpose: "p", Created: time.Unix(3, 4).UTC()}
			for _, err := range []error{
				c.PutExport(ctx, e), c.PutExport(ctx, Export{Name: "y"}), c.RemoveExport(ctx, "y"), c.RemoveExport(ctx, "z"),
				c.PutCheckpoint(ctx, Checkpoint{Name: "c", VolumeID: "v", Backup: "b"}), c.PutCheckpoint(ctx, Checkpoint{Name: "c", VolumeID: "w", Backup: "b"}), c.RemoveCheckpoint(ctx, "v", "c"),
				c.PutUnfinished(ctx, "v", "j"), c.PutUnfinished(ctx, "w", "j"), c.RemoveUnfinished(ctx, "v"),
				c.PutPin(ctx, Pin{"p", "b", "x", false}), c.PutPin(ctx, Pin{"p", "b", "x", true}), c.PutPin(ctx, Pin{"q", "b", "y", true}), c.RemovePin(ctx, "q"),
				c.SetSetting(ctx, "k", "1"), c.SetSetting(ctx, "k", "2"),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			c = reopen(t, c, where)
			if l, err := c.Exports(ctx); err != nil || !reflect.DeepEqual(l, []Export{e}) {
				t.Errorf("exports %+v, %v", l, err)
			}
			if l, err := c.Pins(ctx); err != nil || !reflect.DeepEqual(l, []Pin{{"p", "b", "x", true}}) {
				t.Errorf("pins %+v, %v", l, err)
			}
			if l, err := c.Checkpoints(ctx); err != nil || !reflect.DeepEqual(l, []Checkpoint{{Name: "c", VolumeID: "w", Backup: "b"}}) {
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
		})
	}
}

// Each host has exports, pins, checkpoints, unfinished volumes, settings and jobs of
// its own, under the same names; backups and what is shared all see.
func TestHostsApart(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			hosts := []string{"", "a", "b"}
			for _, h := range hosts {
				v := c.For(h)
				must(
					t, v.PutExport(ctx, Export{Name: "x", Backup: h}), v.PutCheckpoint(ctx, Checkpoint{Name: "c", VolumeID: "v", Backup: h}), v.PutUnfinished(ctx, "v", h),
					v.PutPin(ctx, Pin{ID: "p" + h, Backup: h, Export: "x"}), v.SetSetting(ctx, "k", h+"!"), v.PutJob(ctx, Job{ID: "j" + h, State: Running, Owner: h}),
					v.PutBackup(ctx, Backup{ID: "b" + h, Status: Available}),
				)
			}
			must(t, c.For("a").RemoveExport(ctx, "x"), c.For("a").RemoveCheckpoint(ctx, "v", "c"), c.For("a").RemoveUnfinished(ctx, "v"), c.For("a").SetSetting(ctx, "k", ""))
			for _, h := range hosts {
				v, n := c.For(h), 1
				if h == "a" {
					n = 0
				}
				x, err1 := v.Exports(ctx)
				p, err2 := v.Checkpoints(ctx)
				u, err3 := v.Unfinished(ctx)
				s, err4 := v.Setting(ctx, "k")
				must(t, err1, err2, err3, err4)
				if len(x) != n || len(p) != n || len(u) != n || (s == h+"!") != (n == 1) {
					t.Errorf("host %q has %v, %v, %v, %q", h, x, p, u, s)
				}
				if n == 1 && (x[0].Backup != h || p[0].Backup != h || u["v"] != h) {
					t.Errorf("host %q has another's: %v, %v, %v", h, x, p, u)
				}
				if l, err := v.Pins(ctx); err != nil || len(l) != 1 || l[0].Backup != h {
					t.Errorf("host %q: pins %v, %v", h, l, err)
				}
				if l, err := v.UnfinishedJobs(ctx); err != nil || len(l) != 1 || l[0].Host != h || l[0].Owner != h {
					t.Errorf("host %q: jobs %v, %v", h, l, err)
				}
				if b, err := v.Backup(ctx, "ba"); err != nil || b.Host != "a" {
					t.Errorf("host %q: backup %+v, %v", h, b, err)
				}
			}
			// Who works on a backup says so with its state, and it stays so when another notes something.
			if err := c.For("b").SetBackupStatus(ctx, "ba", Available, Restoring); err != nil {
				t.Fatal(err)
			}
			b, err := c.Backup(ctx, "ba")
			if err != nil || b.Host != "b" {
				t.Errorf("%+v, %v", b, err)
			}
			if err = c.For("a").PutBackup(ctx, b); err != nil {
				t.Fatal(err)
			}
			if b, err = c.Backup(ctx, "ba"); err != nil || b.Host != "b" {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
}

// Of several hosts that come at once each gets the same.
func TestSharedSetting(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			got := make(chan string, 16)
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					h := fmt.Sprint("host", i)
					v, err := c.For(h).SharedSetting(t.Context(), "k", h)
					if err != nil {
						t.Error(err)
					}
					got <- v
				})
			}
			wg.Wait()
			want := <-got
			for range 15 {
				if v := <-got; v != want || v == "" {
					t.Errorf("%q and %q", v, want)
				}
			}
		})
	}
}

// What one of the databases cannot keep both refuse, and what Cairn says itself is kept.
func TestTexts(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			for _, text := range []string{"a\x00b", "a\xffb"} {
				_, err1 := c.Backup(ctx, text)
				for i, err := range []error{
					err1, c.PutBackup(ctx, Backup{ID: "b", Name: text}), c.AddBackup(ctx, Backup{ID: "b", Project: text}, nil), c.SetSetting(ctx, "k", text),
					c.PutExport(ctx, Export{Name: text}), c.DescribeBackup(ctx, "b", &text, nil, nil, time.Now()), c.SetBackupStatus(ctx, "b", Status(text), Available),
				} {
					if !errors.Is(err, ErrText) || !strings.Contains(err.Error(), strconv.Quote(text)) {
						t.Errorf("%q, %d: %v", text, i, err)
					}
				}
				must(
					t, c.PutBackup(ctx, Backup{ID: "b", FailReason: text, Warning: text, FullCompareReason: text, Metadata: map[string]string{"k": "a\x00"}}),
					c.WarnBackup(ctx, "b", text), c.PutJob(ctx, Job{ID: "j", Error: text, Progress: Progress{Phase: text}}),
				)
				b, err := c.Backup(ctx, "b")
				if err != nil || b.FailReason != "a\uFFFDb" || b.Warning != "a\uFFFDb; a\uFFFDb" || b.FullCompareReason != "a\uFFFDb" || b.Metadata["k"] != "a\x00" {
					t.Errorf("%+v, %v", b, err)
				}
				if j, err := c.Job(ctx, "j"); err != nil || j.Error != "a\uFFFDb" {
					t.Errorf("%+v, %v", j, err)
				}
				must(t, c.RemoveBackup(ctx, "b")) // a warning would stay
			}
		})
	}
}

// Lists are in the order of the bytes, whatever the database's collation.
func TestOrder(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			names := []string{"", " x", "A", "Z", "_", "a", "a b", "a-b", "aB", "ab", "z", "ä", "é", "日"}
			for _, i := range rand.Perm(len(names)) {
				must(t, c.PutExport(t.Context(), Export{Name: names[i]}), c.PutBackup(t.Context(), Backup{ID: names[i]}))
			}
			x, err := c.Exports(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.Backups(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, name := range names {
				if x[i].Name != name || b[i].ID != name {
					t.Errorf("%d: %q and %q, want %q", i, x[i].Name, b[i].ID, name)
				}
			}
		})
	}
}
