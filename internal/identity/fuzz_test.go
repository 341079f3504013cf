package identity

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// Whatever a body holds is understood or refused as invalid.
func FuzzAuthRequest(f *testing.F) {
	for _, s := range []string{
		auth("demo", secret, ""), auth("demo", secret, inProject("demo")), auth("demo", secret, `"unscoped"`), auth("demo", secret, `{"system":{"all":true}}`),
		`{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}},"scope":{"project":{"id":"x"}}}}`, `{"auth":{"identity":{"methods":[]}}}`, `[]`, `{}`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := parseAuth(body)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		for i, m := range a.methods {
			switch {
			case m == "password" && (!a.byUser || a.user.id == nil && a.user.name == nil):
				t.Fatalf("%q: the method password without a user", body)
			case slices.Contains(a.methods[:i], m):
				t.Fatalf("%q: %q twice", body, m)
			}
		}
		if a.project != nil && a.project.id == nil && a.project.name == nil {
			t.Fatalf("%q: a scope without a project", body)
		}
	})
}

// The same through the handler: no panic, and never the server's fault.
func FuzzLogIn(f *testing.F) {
	name := filepath.Join(f.TempDir(), "identity.json")
	must(f, Edit(f.Context(), vfs.OS(), name, func(d *Directory) error { fill(f, d); return nil }))
	s, err := New(Options{File: name})
	must(f, err)
	for _, p := range []string{"demo", "x"} {
		f.Add([]byte(auth("demo", secret, inProject(p))), "application/json", "cairn:1", "x")
	}
	f.Fuzz(func(t *testing.T, body []byte, kind, host, token string) {
		s.limit = newLimiter()
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
			req := httptest.NewRequest(method, tokens, bytes.NewReader(body))
			req.Host = host
			req.Header.Set("Content-Type", kind)
			req.Header.Set("X-Auth-Token", token)
			req.Header.Set("X-Subject-Token", token)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, req)
			if w.Code >= http.StatusInternalServerError || w.Code == http.StatusOK {
				t.Fatalf("%s %q: %d %s", method, body, w.Code, w.Body)
			}
		}
	})
}

// What verify takes is what sign makes, and nothing without the key.
func FuzzToken(f *testing.F) {
	d := testDirectory(f, 1)
	good := d.sign(token{methods: methodPassword, user: ident{1}, project: ident{2}, issued: 3, expires: 4, audit: ident{5}})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(strings.Repeat("A", tokenText))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := d.verify(text)
		if err != nil {
			return
		}
		if again := d.sign(tok); again != text {
			t.Fatalf("%q is signed as %q", text, again)
		}
		if text != good {
			t.Fatalf("%q was made without the key", text)
		}
	})
}

// A users file that is read is written so that it reads the same.
func FuzzUsersFile(f *testing.F) {
	d := testDirectory(f, 1)
	fill(f, d)
	d.sort()
	data, err := d.encode()
	must(f, err)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(`{"format":"cairn identity","version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := decode(data)
		if err != nil {
			return
		}
		out, err := d.encode()
		if err != nil {
			return // too large when it is indented
		}
		again, err := decode(out)
		if err != nil || !reflect.DeepEqual(again, d) {
			t.Fatalf("%v\n%s\n%s", err, data, out)
		}
	})
}

// Whatever the other side says about a token is understood or refused.
func FuzzKeystone(f *testing.F) {
	f.Add([]byte(`{"token":{"user":{"id":"u","name":"n"},"expires_at":"2026-01-02T04:04:05.000000Z","project":{"id":"p"},"roles":[{"name":"admin"}]}}`))
	f.Add([]byte(`{"error":{"code":401}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		keystoneError(body)
		c, err := parseKeystone(body)
		if err == nil && (c.UserID == "" || c.ExpiresAt.IsZero() || c.Admin && len(c.Roles) == 0) {
			t.Fatalf("%q: %+v", body, c)
		}
	})
}

// A file of revoked tokens is read or refused.
func FuzzRevoked(f *testing.F) {
	f.Add([]byte(`{"format":"cairn revoked tokens","version":1,"users":{"0123456789abcdef0123456789abcdef":{"before":1,"until":2,"tokens":{"x":3}}}}`))
	name := filepath.Join(f.TempDir(), "identity.json")
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := decodeRevoked(data)
		if err != nil {
			return
		}
		r := &revocations{fsys: vfs.OS(), name: name, users: doc.Users}
		r.holds(token{user: ident{1}})
		must(t, r.add(token{user: ident{1}, audit: ident{2}, expires: 5}, 4))
		if !r.holds(token{user: ident{1}, audit: ident{2}}) {
			t.Fatal("a token that was given back counts")
		}
		b, err := os.ReadFile(name)
		must(t, err)
		if again, err := decodeRevoked(b); err != nil || !reflect.DeepEqual(again.Users, r.users) {
			t.Fatalf("%v\n%s", err, b)
		}
	})
}
