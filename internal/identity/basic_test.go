package identity

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// basic returns the authenticator and a request to it.
func (r *rig) basic(t *testing.T) (func(user, password string) (Caller, error), Authenticator) {
	t.Helper()
	a, err := r.Basic()
	must(t, err)
	return func(user, password string) (Caller, error) {
		req := with()
		req.SetBasicAuth(user, password)
		return a.Authenticate(req)
	}, a
}

func TestBasic(t *testing.T) {
	r := newRig(t)
	try, a := r.basic(t)
	if _, err := a.Authenticate(with()); !errors.Is(err, ErrNoCredentials) {
		t.Fatal(err)
	}
	if _, err := a.Authenticate(with("Authorization", "Basic !")); !errors.Is(err, ErrNoCredentials) {
		t.Fatal(err)
	}
	for range 3 {
		if c, err := try("demo", secret); err != nil || c.ProjectID != r.ids["project demo"] || c.Admin || !c.ExpiresAt.IsZero() {
			t.Fatalf("%+v %v", c, err)
		}
	}
	for _, c := range []struct {
		user, password string
		want           error
	}{
		{"demo", "wrong", ErrUnauthorized},
		{"nobody", secret, ErrUnauthorized},
		{"", "", ErrUnauthorized},
		{strings.Repeat("x", 256), secret, ErrUnauthorized},
		{"demo", strings.Repeat("x", MaxPassword+1), ErrUnauthorized},
		{"loner", secret, ErrForbidden},
	} {
		if _, err := try(c.user, c.password); !errors.Is(err, c.want) {
			t.Errorf("%.20s: %v, want %v", c.user, err, c.want)
		}
	}
	// What is remembered ends with the password.
	r.edit(t, func(d *Directory) error { _, err := d.SetPassword("demo", []byte("new")); return err })
	if _, err := try("demo", secret); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if _, err := try("demo", "new"); err != nil {
		t.Fatal(err)
	}
	// A password that is remembered is no way to guess faster.
	for range limitFree + 1 {
		if _, err := try("demo", "wrong"); !errors.Is(err, ErrUnauthorized) {
			t.Fatal(err)
		}
	}
	if _, err := try("demo", "new"); !errors.Is(err, ErrTooMany) {
		t.Fatal(err)
	}
	r.clock.turn(time.Minute)
	if _, err := try("demo", "new"); err != nil {
		t.Fatal(err)
	}
}

// A password that was right is hashed once.
func TestBasicRemembers(t *testing.T) {
	r := newRig(t)
	a, err := r.Basic()
	must(t, err)
	req := with()
	req.SetBasicAuth("demo", secret)
	_, err = a.Authenticate(req)
	must(t, err)
	for range maxHashing { // now nothing can be hashed
		must(t, r.hashing.begin(t.Context()))
	}
	_, err = a.Authenticate(req)
	must(t, err)
	r.clock.turn(basicFor)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err = a.Authenticate(req.WithContext(ctx)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
}
