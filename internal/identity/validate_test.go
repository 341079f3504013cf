package identity

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// with is a request with headers, as an authenticator sees it.
func with(headers ...string) *http.Request {
	req := httptest.NewRequest(http.MethodGet, "http://cairn.example/volume/v3/x/backups", nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func TestValidate(t *testing.T) {
	r := newRig(t)
	admin, demo, loner := r.token(t, "admin", ""), r.token(t, "demo", ""), r.token(t, "loner", "")
	for _, c := range []struct {
		name, method, by, subject string
		status                    int
		text                      string
	}{
		{"one's own", "GET", demo, demo, 200, `"name":"demo"`},
		{"look", "HEAD", demo, demo, 200, ""},
		{"by an administrator", "GET", admin, demo, 200, `"name":"demo"`},
		{"by somebody else", "GET", demo, admin, 403, "identity:validate_token"},
		{"unscoped", "GET", loner, loner, 200, `"name":"loner"`},
		{"by nobody", "GET", "", demo, 401, ""},
		{"by a wrong one", "GET", "x", demo, 401, ""},
		{"of none", "GET", demo, "", 403, "identity:validate_token"},
		{"of none, by an administrator", "GET", admin, "", 404, "No token in the request"},
		{"of a wrong one", "GET", admin, "x", 404, "Failed to validate token"},
		{"revoke another's", "DELETE", demo, admin, 403, "identity:revoke_token"},
		{"revoke", "DELETE", demo, demo, 204, ""},
		{"revoked", "GET", demo, demo, 401, ""},
		{"revoked, by an administrator", "GET", admin, demo, 404, "Failed to validate token"},
		{"revoked twice", "DELETE", admin, demo, 404, ""},
		{"revoke by an administrator", "DELETE", admin, loner, 204, ""},
		{"revoked by an administrator", "GET", loner, loner, 401, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := r.do(t, c.method, tokens, "", "X-Auth-Token", c.by, "X-Subject-Token", c.subject)
			if a.status != c.status || !strings.Contains(a.text, c.text) {
				t.Fatalf("%d %s, want %d %s", a.status, a.text, c.status, c.text)
			}
			if a.status == 200 && a.header.Get("X-Subject-Token") != c.subject {
				t.Fatalf("%v", a.header)
			}
		})
	}
	// They stay revoked when the service is started again.
	again, err := New(Options{File: r.name, Now: r.clock.Now})
	must(t, err)
	if _, err := again.Authenticate(with("X-Auth-Token", demo)); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if c, err := again.Authenticate(with("X-Auth-Token", admin)); err != nil || !c.Admin {
		t.Fatal(err)
	}
}

func TestAuthenticate(t *testing.T) {
	r := newRig(t)
	c, err := r.Authenticate(with("X-Auth-Token", r.token(t, "demo", inProject("other"))))
	must(t, err)
	if c.UserID != r.ids["user demo"] || c.UserName != "demo" || c.ProjectID != r.ids["project other"] || c.ProjectName != "other" ||
		c.Admin || strings.Join(c.Roles, " ") != "reader" || !c.ExpiresAt.Equal(r.clock.Now().Add(time.Hour)) {
		t.Fatalf("%+v", c)
	}
	if _, err = r.Authenticate(with()); !errors.Is(err, ErrNoCredentials) || !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if _, err = r.Authenticate(with("X-Auth-Token", r.token(t, "loner", ""))); !errors.Is(err, ErrForbidden) {
		t.Fatal(err)
	}
	if _, err = r.Authenticate(with("X-Auth-Token", strings.Repeat("x", 1<<20))); !errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrNoCredentials) {
		t.Fatal(err)
	}
}

// What ends a token, at once.
func TestTokensEnd(t *testing.T) {
	edits := map[string]func(*Directory) error{
		"time":              nil,
		"another password":  func(d *Directory) error { _, err := d.SetPassword("demo", []byte("new")); return err },
		"the same password": func(d *Directory) error { _, err := d.SetPassword("demo", []byte(secret)); return err },
		"user deleted":      func(d *Directory) error { _, err := d.DeleteUser("demo"); return err },
		"user made anew": func(d *Directory) error {
			u, err := d.DeleteUser("demo")
			if err == nil {
				_, err = d.CreateUser(NewUser{Name: "demo", Password: []byte(secret), Projects: []string{u.DefaultProject}})
			}
			return err
		},
		"project deleted": func(d *Directory) error { _, err := d.DeleteProject("demo"); return err },
		"role taken":      func(d *Directory) error { u := d.userByName("demo"); delete(u.Projects, u.DefaultProject); return nil },
		"another key":     func(d *Directory) error { d.key = []byte(strings.Repeat("k", keySize)); return nil },
	}
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tok := with("X-Auth-Token", r.token(t, "demo", ""))
			r.clock.turn(time.Hour - time.Second)
			if _, err := r.Authenticate(tok); err != nil {
				t.Fatal(err)
			}
			if edit == nil {
				r.clock.turn(time.Second)
			} else {
				r.edit(t, edit)
			}
			if _, err := r.Authenticate(tok); !errors.Is(err, ErrUnauthorized) {
				t.Fatal(err)
			}
		})
	}
}

// Agents that share a copy of the file take each other's tokens.
func TestSharedFile(t *testing.T) {
	r, other := newRig(t), newRig(t)
	data, err := os.ReadFile(r.name)
	must(t, err)
	must(t, os.WriteFile(other.name, data, 0o600))
	if _, err := other.Authenticate(with("X-Auth-Token", r.token(t, "demo", ""))); err != nil {
		t.Fatal(err)
	}
}

// However many tokens a user gives back, what is kept stays small and all of them end.
func TestRevokeMany(t *testing.T) {
	r := newRig(t)
	keep := r.token(t, "admin", "")
	var all []string
	for range maxRevoked + 5 {
		r.clock.turn(time.Second)
		tok := r.token(t, "demo", "")
		all = append(all, tok)
		if a := r.do(t, "DELETE", tokens, "", "X-Auth-Token", tok, "X-Subject-Token", tok); a.status != 204 {
			t.Fatalf("%d %s", a.status, a.text)
		}
	}
	for _, s := range []*Service{r.Service, r.again(t)} {
		for i, tok := range all {
			if _, err := s.Authenticate(with("X-Auth-Token", tok)); !errors.Is(err, ErrUnauthorized) {
				t.Fatalf("token %d: %v", i, err)
			}
		}
		if _, err := s.Authenticate(with("X-Auth-Token", keep)); err != nil {
			t.Fatal(err)
		}
		if n := len(s.revoked.users[r.ids["user demo"]].Tokens); n > maxRevoked {
			t.Fatalf("%d are kept", n)
		}
	}
	// New ones count, and what is over is forgotten.
	r.clock.turn(2 * time.Hour)
	tok := r.token(t, "loner", "")
	if a := r.do(t, "DELETE", tokens, "", "X-Auth-Token", tok, "X-Subject-Token", tok); a.status != 204 {
		t.Fatalf("%d %s", a.status, a.text)
	}
	if len(r.revoked.users) != 1 {
		t.Fatalf("%d users are kept", len(r.revoked.users))
	}
	if _, err := r.Authenticate(with("X-Auth-Token", r.token(t, "demo", ""))); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) again(t *testing.T) *Service {
	t.Helper()
	s, err := New(Options{File: r.name, Now: r.clock.Now})
	must(t, err)
	return s
}

func TestRevokedFileRefusals(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ file, want string }{
		{``, "no JSON"},
		{`{"format":"x","version":1}`, "format"},
		{`{"format":"cairn revoked tokens","version":2}`, "newer cairn"},
		{`{"format":"cairn revoked tokens","version":0}`, "no version"},
		{`{"format":"cairn revoked tokens","version":1,"x":1}`, "unknown field"},
		{`{"format":"cairn revoked tokens","version":1,"users":{"a":null}}`, "incomplete"},
	} {
		must(t, os.WriteFile(r.revoked.name, []byte(c.file), 0o600))
		if _, err := New(Options{File: r.name}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.file, err)
		}
	}
	// What cannot be recorded is told.
	must(t, os.Remove(r.revoked.name))
	must(t, os.Mkdir(r.revoked.name, 0o700))
	tok := r.token(t, "demo", "")
	a := r.do(t, "DELETE", tokens, "", "X-Auth-Token", tok, "X-Subject-Token", tok)
	if a.status != http.StatusServiceUnavailable || strings.Contains(a.text, r.name) {
		t.Errorf("%d %s", a.status, a.text)
	}
	if _, err := r.Authenticate(with("X-Auth-Token", tok)); !errors.Is(err, ErrUnauthorized) {
		t.Error(err)
	}
}
