package repository

import (
	"context"
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// What a pin keeps stays readable when its backup is deleted and pruned, and
// goes when the pin does.
func TestPin(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 200, 40)
	v.mustBackup(t, r, "one", "", nil)
	if err := r.Pin(t.Context(), "p1", "one", "exported as web"); err != nil {
		t.Fatal(err)
	}
	if err := r.Pin(t.Context(), "p1", "one", "exported as web"); err != nil {
		t.Fatalf("once more: %v", err)
	}
	pins, err := r.Pins(t.Context())
	if err != nil || len(pins) != 1 || pins[0].ID != "p1" || pins[0].Backup != "one" || pins[0].By != "exported as web" || pins[0].State != Available {
		t.Fatalf("pins: %+v, %v", pins, err)
	}
	if bs, err := r.Backups(t.Context()); err != nil || len(bs) != 1 || bs[0].ID != "one" {
		t.Fatalf("a pin is listed with the backups: %+v, %v", bs, err)
	}
	if err := r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	c.drained(t, r)
	r = c.open(t)
	if _, err := r.Image(t.Context(), "one"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the backup is still there: %v", err)
	}
	mustVerify(t, v, r, "p1")
	if rep, err := r.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	next := v.clone()
	next.mustBackup(t, r, "two", "p1", nil)
	if b, err := r.Backup(t.Context(), "two"); err != nil || b.Incremental {
		t.Fatalf("a pin was taken for a parent: %+v, %v", b, err)
	}
	if err := errors.Join(r.Delete(t.Context(), "two"), r.Unpin(t.Context(), "p1")); err != nil {
		t.Fatal(err)
	}
	if l, err := r.Trash(t.Context()); err != nil || len(l) != 1 || l[0].ID != "two" {
		t.Fatalf("a pin is listed with the trash: %+v, %v", l, err)
	}
	c.drained(t, r)
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); ok {
				t.Fatalf("%s: %s stays without a pin", m.URL(), name)
			}
		}
	}
}

func TestPinRefusals(t *testing.T) {
	_, r := fresh(t)
	v := randomContent(seeded(1), 20, 5)
	v.mustBackup(t, r, "one", "", nil)
	v.mustBackup(t, r, "two", "", nil)
	if err := r.Pin(t.Context(), "p", "two", ""); err != nil {
		t.Fatal(err)
	}
	for what, tt := range map[string]struct{ err, want error }{
		"no backup":         {r.Pin(t.Context(), "q", "none", ""), ErrNotFound},
		"a backup as a pin": {r.Pin(t.Context(), "one", "two", ""), ErrInvalid},
		"a pin of a pin":    {r.Pin(t.Context(), "q", "p", ""), ErrNotFound},
		"unpin nothing":     {r.Unpin(t.Context(), "none"), ErrNotFound},
		"unpin a backup":    {r.Unpin(t.Context(), "one"), ErrInvalid},
		"undelete a pin":    {undelete(t.Context(), r, "p"), ErrNotFound},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", what, tt.err, tt.want)
		}
	}
}

func undelete(ctx context.Context, r *Repository, id string) error {
	_, err := r.Undelete(ctx, id)
	return err
}

// Whatever call of a pin is the last of its process, trying again with the same
// ID makes the pin, and removing it leaves nothing.
func TestPinKilled(t *testing.T) {
	base, r := fresh(t)
	v := randomContent(seeded(1), 60, 10)
	v.mustBackup(t, r, "one", "", nil)
	for n := int64(1); ; n += stride(7, 23) {
		c := base.clone()
		r := c.open(t)
		ctx, kill := context.WithCancelCause(t.Context())
		c.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		err := r.Pin(ctx, "p", "one", "")
		killed := ctx.Err() != nil
		kill(nil)
		c.heal()
		if !killed {
			if err != nil {
				t.Fatalf("the pin that nobody killed: %v", err)
			}
			break
		}
		r = c.open(t)
		if err := errors.Join(r.Pin(t.Context(), "p", "one", ""), r.Delete(t.Context(), "one")); err != nil {
			t.Fatalf("killed at call %d: again: %v", n, err)
		}
		c.drained(t, r)
		if err := v.verify(t.Context(), r, "p"); err != nil {
			t.Fatalf("killed at call %d: %v", n, err)
		}
		if err := r.Unpin(t.Context(), "p"); err != nil {
			t.Fatalf("killed at call %d: unpin: %v", n, err)
		}
		c.drained(t, r)
	}
}

// With two stores down nothing can be pinned, which is said.
func TestPinWithoutStores(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 20, 5)
	v.mustBackup(t, r, "one", "", nil)
	for _, f := range c.faulty[:2] {
		f.SetFaults(memstore.Faults{Before: func(context.Context, memstore.Call) error { return objstore.ErrDown }})
	}
	if err := r.Pin(t.Context(), "p", "one", ""); !errors.Is(err, ErrTooFewStores) {
		t.Fatalf("pin: %v", err)
	}
}
