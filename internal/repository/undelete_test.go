package repository

import (
	"errors"
	"strings"
	"testing"
)

// What a prune has condemned cannot come back, and is told to be on its way: it is
// there still, so that "no such backup" would be wrong.
func TestUndeleteCondemned(t *testing.T) {
	aged := newScene(t, 4, 2, 1).aged()
	ran := 0
	for _, step := range []string{"remove backups", "remove packs"} { // before P8, behind it
		s := &scene{cluster: aged.clone(), t: t, kept: aged.kept, gone: aged.gone}
		s.r = s.process().open(t)
		o := hastyAt(step, func() {
			ran++
			_, err := s.process().open(t).Undelete(t.Context(), "gone")
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", step, err)
			}
			if says := strings.Contains(err.Error(), "a prune is removing it, and it cannot be brought back any more"); says != (step == "remove backups") {
				t.Errorf("%s: %v", step, err)
			}
			if lies := strings.Contains(err.Error(), ErrNotFound.Error()); lies == (step == "remove backups") {
				t.Errorf("%s: %v", step, err)
			}
		})
		if _, err := s.r.Prune(t.Context(), o); err != nil {
			t.Error(err)
		}
		s.end()
	}
	if ran != 2 {
		t.Error(ran)
	}
}

// A backup in the trash whose packs are just being compacted can be taken back
// when the prune has ended, and a live one be pinned; until then that is told, and
// not that there is no such backup.
func TestUndeleteWhileCompacting(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	v := h.v.clone()
	v.mustBackup(t, r, "trashed", "b1", nil)
	if err := r.Delete(t.Context(), "trashed"); err != nil {
		t.Fatal(err)
	}
	ran := false
	rep, err := c.process().open(t).Prune(t.Context(), hastyAt("compact", func() {
		ran = true
		other := c.process().open(t)
		_, undeleted := other.Undelete(t.Context(), "trashed")
		for what, err := range map[string]error{"undelete": undeleted, "pin": other.Pin(t.Context(), "p", "b1", "")} {
			if !errors.Is(err, ErrPruning) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "on the list of a prune: try again when that has ended") {
				t.Errorf("%s: %v", what, err)
			}
		}
	}))
	if err != nil || rep.Compacted == 0 || !ran {
		t.Fatalf("%+v, %v", rep, err)
	}
	if _, err := r.Undelete(t.Context(), "trashed"); err != nil {
		t.Error(err)
	}
	if err := r.Pin(t.Context(), "p", "b1", ""); err != nil {
		t.Error(err)
	}
	mustVerify(t, v, c.open(t), "trashed")
	h.verify(t, c.open(t))
}
