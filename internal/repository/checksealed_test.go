package repository

import (
	"strings"
	"testing"
)

// What was written since a rotation stopped the password of a process, its check
// cannot judge: it says so, calls nothing damaged and publishes nothing. What was
// there before it judges.
func TestCheckByStoppedPassword(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	v := randomContent(seeded(50), 60, 20)
	v.mustRun(t, r, "other", "untouched", "")
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	stopped := func() *Repository {
		return c.process().open(t, func(o *Options) { o.Password = []byte("second") })
	}
	cached, cold := stopped(), stopped()
	h.verify(t, cached)
	mustRotate(t, r)
	if rep := mustPrune(t, r); rep.Compacted == 0 {
		t.Fatal(rep)
	}
	judge := func(t *testing.T, rr *Repository, made int) {
		t.Helper()
		got, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true})
		if err != nil || got.OK() || len(got.Problems) != 0 || !strings.Contains(got.Unjudged, "packs that were compacted since") || !strings.Contains(got.Unjudged, "password") {
			t.Fatalf("%v: %q, %q", err, got.Unjudged, got.Problems)
		}
		if strings.Contains(got.Unjudged, "backups that were made") != (made > 0) {
			t.Error(got.Unjudged)
		}
		unjudged := 0
		for _, b := range got.Backups {
			if b.Unjudged {
				unjudged++
			}
			if len(b.Damaged) > 0 || b.Restorable == b.Unjudged || b.Backup.ID == "untouched" && b.Unjudged {
				t.Errorf("%+v", b)
			}
		}
		if unjudged == 0 || len(got.Backups) != len(h.kept)+1 {
			t.Errorf("%d of %d unjudged", unjudged, len(got.Backups))
		}
		for _, s := range got.Stores {
			if s.Status.State != StoreUp || s.Missing+s.Damaged != 0 || len(s.Problems) != 0 {
				t.Errorf("%+v", s)
			}
		}
		d, err := r.readDamage(t.Context())
		if err != nil || d.version != 0 || got.Unpublished == "" {
			t.Errorf("%d packs published as beyond repair, %q", d.size(), got.Unpublished)
		}
	}
	t.Run("compacted", func(t *testing.T) {
		judge(t, cached, 0)
		judge(t, cold, 0)
	})
	v.mustRun(t, r, "other", "new", "")
	t.Run("and a backup", func(t *testing.T) {
		judge(t, cached, 1)
	})
	if rep := mustCheck(t, c.open(t)); !rep.OK() || rep.Unjudged != "" {
		t.Errorf("by the new key: %+v", rep)
	}
	// Damage is damage, whatever the password.
	for _, name := range c.packNames() {
		c.lose(t, name, []int{0, 1, 2}, true)
	}
	got, err := cached.Check(t.Context(), CheckOptions{ReadData: true, Publish: true})
	if err != nil || got.Unjudged == "" {
		t.Fatal(got.Unjudged, err)
	}
	for _, b := range got.Backups {
		if b.Backup.ID == "untouched" && (b.Restorable || b.Unjudged || len(b.Damaged) == 0) {
			t.Errorf("%+v", b)
		}
	}
}
