package identity

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The people of the tests. Demo is a member of demo and reader of other, loner has no
// project; all have the password "secret".
const (
	secret = "secret"
	tokens = "/identity/v3/auth/tokens"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a service over a users file of its own.
type rig struct {
	*Service
	clock *clock
	name  string
	url   string
	ids   map[string]string // of users and projects, by name
}

// cheap is a hash of a password that costs little to compare with.
func cheap(tb testing.TB, password string) string {
	tb.Helper()
	b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	must(tb, err)
	return string(b)
}

// fill makes the people.
func fill(tb testing.TB, d *Directory) {
	tb.Helper()
	for _, p := range []string{"admin", "demo", "other", "hidden"} {
		_, err := d.CreateProject(p, "the project "+p)
		must(tb, err)
	}
	hash := cheap(tb, secret)
	for _, u := range []NewUser{
		{Name: "admin", Projects: []string{"admin"}, Admin: true},
		{Name: "demo", Projects: []string{"demo", "other"}},
		{Name: "loner"},
	} {
		u.Password = []byte(secret)
		made, err := d.CreateUser(u)
		must(tb, err)
		d.userByID(made.ID).Password = hash
	}
	other := d.projectByName("other")
	d.userByName("demo").Projects[other.ID] = []string{roleReader}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{clock: newClock(), name: filepath.Join(t.TempDir(), "identity.json"), ids: map[string]string{}}
	r.edit(t, func(d *Directory) error { fill(t, d); return nil })
	s, err := New(Options{File: r.name, Now: r.clock.Now})
	must(t, err)
	d, err := s.users.Current()
	must(t, err)
	for _, p := range d.projects {
		r.ids["project "+p.Name] = p.ID
	}
	for _, u := range d.users {
		r.ids["user "+u.Name] = u.ID
	}
	r.serve(t, s)
	return r
}

// serve makes the rig that of another service.
func (r *rig) serve(t *testing.T, s *Service) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	r.Service, r.url = s, server.URL
}

func (r *rig) edit(t *testing.T, change func(*Directory) error) {
	t.Helper()
	must(t, Edit(context.WithoutCancel(t.Context()), vfs.OS(), r.name, change))
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	text   string
	body   map[string]any
}

// at is the value at a path such as "token/user/name"; numbers are not taken.
func (a *answer) at(path string) any {
	var v any = a.body
	for key := range strings.SplitSeq(path, "/") {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[key]
	}
	return v
}

// do sends a request. headers are pairs.
func (r *rig) do(t *testing.T, method, path, body string, headers ...string) *answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(body))
	must(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	a := &answer{status: resp.StatusCode, header: resp.Header, text: string(b)}
	if len(b) > 0 {
		if err := json.Unmarshal(b, &a.body); err != nil {
			t.Fatalf("%s %s answers no JSON: %q", method, path, b)
		}
	}
	return a
}

// auth is a request for a token: of a user by name, and a scope as JSON, "" for none.
func auth(user, password, scope string) string {
	if scope != "" {
		scope = `,"scope":` + scope
	}
	return `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"` + user + `","domain":{"id":"default"},"password":"` + password + `"}}}` + scope + `}}`
}

func inProject(name string) string {
	return `{"project":{"name":"` + name + `","domain":{"name":"Default"}}}`
}

// token logs in and returns the token.
func (r *rig) token(t *testing.T, user, scope string) string {
	t.Helper()
	a := r.do(t, "POST", "/identity/v3/auth/tokens", auth(user, secret, scope))
	if a.status != http.StatusCreated {
		t.Fatalf("log in as %s: %d %s", user, a.status, a.text)
	}
	return a.header.Get("X-Subject-Token")
}
