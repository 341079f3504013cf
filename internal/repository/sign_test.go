package repository

import (
	"bytes"
	"testing"
)

// A signature depends on the repository, the purpose and the data, and on nothing else:
// another process, and one behind a rotation of the key, make the same.
func TestSign(t *testing.T) {
	c, _ := fresh(t)
	r := c.open(t)
	sign := func(r *Repository, purpose, data string) []byte {
		t.Helper()
		s, err := r.Sign(purpose, []byte(data))
		if err != nil || len(s) != 32 {
			t.Fatalf("%x, %v", s, err)
		}
		return s
	}
	want := sign(r, "a", "data")
	if !bytes.Equal(want, sign(c.open(t), "a", "data")) {
		t.Error("another process signs otherwise")
	}
	other, _ := fresh(t)
	for what, got := range map[string][]byte{
		"another purpose": sign(r, "b", "data"), "other data": sign(r, "a", "datb"), "another repository": sign(other.open(t), "a", "data"),
	} {
		if bytes.Equal(got, want) {
			t.Errorf("%s: the same signature", what)
		}
	}
}
