package repository

import (
	"errors"
	"fmt"
	"testing"
)

// The same command is given once more while the first one is at work, at any moment of
// it: the second goes on with what the first began. Whichever ends it, the password
// opens the repository, and all that was written before.
func TestRotateTwiceAtOnce(t *testing.T) {
	w, r := fresh(t)
	v := randomContent(seeded(3), 60, 20)
	v.mustBackup(t, r, "b", "", nil)
	tried := make(map[string]int)
	for n := int64(1); ; n += stride(1, 4) {
		c := w.clone()
		again := c.process()
		first, second := c.open(t), again.open(t)
		over := true
		var errs [2]error
		c.onCalls(func(call int64) error {
			if call == n {
				over = false
				_, errs[1] = second.RotateKey(t.Context())
			}
			return nil
		})
		_, errs[0] = first.RotateKey(t.Context())
		c.heal()
		if over {
			break
		}
		when := fmt.Sprintf("call %d: %v; %v", n, errs[0], errs[1])
		for _, err := range errs {
			if err != nil && !errors.Is(err, ErrChange) && !errors.Is(err, ErrPassword) {
				t.Errorf("%s", when)
			}
		}
		tried[fmt.Sprint(errs[0] == nil, errs[1] == nil)]++
		if err := openWith(t, c, string(password)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		mustVerify(t, v, c.open(t), "b")
		if _, err := c.open(t).RotateKey(t.Context()); err != nil {
			t.Fatalf("%s: then again: %v", when, err)
		}
		mustVerify(t, v, c.open(t), "b")
	}
	if tried["true true"] == 0 {
		t.Fatalf("outcomes: %v", tried)
	}
}
