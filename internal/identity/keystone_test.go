package identity

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fake is an Identity service that answers what it is told.
type fake struct {
	*Keystone
	clock  *clock
	asked  atomic.Int64
	answer func(w http.ResponseWriter, token string)
}

func newFake(t *testing.T, suffix string) *fake {
	t.Helper()
	f := &fake{clock: newClock()}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		token := r.Header.Get("X-Auth-Token")
		if r.Method != http.MethodGet || r.URL.Path != "/v3/auth/tokens" || token != r.Header.Get("X-Subject-Token") {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		f.answer(w, token)
	}))
	t.Cleanup(server.Close)
	k, err := NewKeystone(server.URL+suffix, KeystoneOptions{Now: f.clock.Now})
	must(t, err)
	f.Keystone = k
	f.answer = f.whole("2026-01-02T04:04:05.000000Z", `{"id":"p1","name":"demo"}`, `[{"id":"r1","name":"member"}]`)
	return f
}

func (f *fake) whole(expires, project, roles string) func(http.ResponseWriter, string) {
	return f.text(http.StatusOK, `{"token":{"methods":["password"],"user":{"id":"u1","name":"alice","domain":{"id":"default"}},"expires_at":"`+expires+`","project":`+project+`,"roles":`+roles+`,"is_domain":false}}`)
}

func (*fake) text(status int, body string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func (f *fake) try(token string) (Caller, error) { return f.Authenticate(with("X-Auth-Token", token)) }

func TestKeystoneAnswers(t *testing.T) {
	const unknown = `{"error":{"code":401,"message":"x","title":"Unauthorized"}}`
	f := newFake(t, "")
	const end = "2026-01-02T04:04:05.000000Z"
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter, string)
		want   error
	}{
		{"a member", f.answer, nil},
		{"an administrator", f.whole(end, `{"id":"p1","name":"demo"}`, `[{"name":"reader"},{"name":"Admin"}]`), nil},
		{"unscoped", f.whole(end, `null`, `null`), ErrForbidden},
		{"expired", f.whole("2026-01-02T03:04:05.000000Z", `{"id":"p1"}`, `[]`), ErrUnauthorized},
		{"unknown", f.text(401, unknown), ErrUnauthorized},
		{"not found", f.text(404, strings.ReplaceAll(unknown, "401", "404")), ErrUnauthorized},
		{"a 404 of another server", f.text(404, `<html>`), ErrUnavailable},
		{"a 401 of another server", f.text(401, ``), ErrUnavailable},
		{"forbidden", f.text(403, unknown), ErrUnavailable},
		{"broken", f.text(500, unknown), ErrUnavailable},
		{"moved", f.text(302, ``), ErrUnavailable},
		{"no JSON", f.text(200, `<html>`), ErrUnavailable},
		{"no user", f.text(200, `{"token":{"expires_at":"`+end+`"}}`), ErrUnavailable},
		{"no end", f.text(200, `{"token":{"user":{"id":"u"}}}`), ErrUnavailable},
		{"no time", f.whole("tomorrow", `{}`, `[]`), ErrUnavailable},
		{"endless", f.text(200, strings.Repeat(" ", maxKeystoneBody+1)), ErrUnavailable},
		{"cut", func(w http.ResponseWriter, _ string) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "{")
		}, ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.answer = c.answer
			got, err := f.try(strings.ReplaceAll(c.name, " ", "-"))
			if c.want != nil {
				if !errors.Is(err, c.want) || got.UserID != "" {
					t.Fatalf("%+v %v, want %v", got, err, c.want)
				}
				return
			}
			must(t, err)
			if got.UserID != "u1" || got.UserName != "alice" || got.ProjectID != "p1" || got.ProjectName != "demo" || got.Admin != (c.name == "an administrator") || len(got.Roles) == 0 || !got.ExpiresAt.Equal(f.clock.Now().Add(time.Hour)) {
				t.Fatalf("%+v", got)
			}
		})
	}
	for _, c := range []struct {
		token string
		want  error
	}{{"", ErrNoCredentials}, {strings.Repeat("x", maxForeignToken+1), ErrUnauthorized}, {"a b", ErrUnauthorized}, {"\xff", ErrUnauthorized}} {
		before := f.asked.Load()
		if _, err := f.try(c.token); !errors.Is(err, c.want) || f.asked.Load() != before {
			t.Errorf("%.10q: %v, want %v unasked", c.token, err, c.want)
		}
	}
}

func TestKeystoneRemembers(t *testing.T) {
	f := newFake(t, "/v3/")
	asks := func(token string, want int64, wantErr error) {
		t.Helper()
		before := f.asked.Load()
		if _, err := f.try(token); !errors.Is(err, wantErr) && (wantErr != nil || err != nil) {
			t.Fatalf("%v, want %v", err, wantErr)
		}
		if got := f.asked.Load() - before; got != want {
			t.Fatalf("asked %d times, want %d", got, want)
		}
	}
	asks("one", 1, nil)
	asks("one", 0, nil)
	asks("two", 1, nil)
	good := f.answer
	f.answer = f.text(500, "")
	f.clock.turn(keystoneFor - time.Second)
	asks("one", 0, nil) // Keystone's rest is not ours
	f.clock.turn(time.Second)
	asks("one", 1, ErrUnavailable)
	asks("one", 1, ErrUnavailable) // which is not remembered
	f.answer = f.text(401, `{"error":{"code":401}}`)
	asks("one", 1, ErrUnauthorized)
	f.answer = good
	asks("one", 1, nil)
	// No longer than the token.
	f.clock.turn(50 * time.Minute)
	asks("three", 1, nil)
	f.clock.turn(5*time.Minute - time.Second)
	asks("three", 0, nil)
	f.clock.turn(time.Second)
	asks("three", 1, ErrUnauthorized)
	// What callers do with the roles stays theirs.
	g := newFake(t, "")
	_, err := g.try("x")
	must(t, err)
	c, err := g.try("x")
	must(t, err)
	c.Roles[0] = "admin"
	if c, err = g.try("x"); err != nil || c.Roles[0] != "member" {
		t.Fatalf("%+v %v", c, err)
	}
	for i := range keystoneEntries + 10 {
		_, err := g.try("t" + strconv.Itoa(i))
		must(t, err)
	}
	if len(g.seen.items) != keystoneEntries {
		t.Fatalf("%d are remembered", len(g.seen.items))
	}
}

// How long an answer counts can be set, down to its own request.
func TestKeystoneRemembersAsSet(t *testing.T) {
	for _, keep := range []time.Duration{0, time.Second, time.Hour} {
		f := newFake(t, "")
		k, err := NewKeystone(f.root, KeystoneOptions{Now: f.clock.Now, Remember: &keep})
		must(t, err)
		f.Keystone = k
		f.answer = f.whole("2026-01-03T03:04:05.000000Z", `{"id":"p1"}`, `[]`)
		asks := func(want int64) {
			t.Helper()
			before := f.asked.Load()
			_, err := f.try("one")
			must(t, err)
			if got := f.asked.Load() - before; got != want {
				t.Fatalf("remembers for %v: asked %d times, want %d", keep, got, want)
			}
		}
		asks(1)
		if keep > 0 {
			f.clock.turn(keep - time.Millisecond)
			asks(0)
			f.clock.turn(time.Millisecond)
		}
		asks(1)
	}
}

func TestKeystoneIsSilent(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	k, err := NewKeystone(url, KeystoneOptions{})
	must(t, err)
	_, err = k.Authenticate(with("X-Auth-Token", "x"))
	e, ok := asError(err)
	if !ok || !errors.Is(err, ErrUnavailable) || e.Cause == nil || e.RetryAfter == 0 || strings.Contains(e.Text, url) {
		t.Fatalf("%+v", err)
	}
	// One that does not answer, and one that is asked too much: nobody waits for ever.
	f := newFake(t, "")
	f.wait = 20 * time.Millisecond
	stuck := make(chan struct{})
	defer close(stuck)
	f.answer = func(http.ResponseWriter, string) { <-stuck }
	if _, err := f.try("x"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	for range keystoneAtOnce {
		f.busy <- struct{}{}
	}
	if _, err := f.try("y"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "keystone", "ftp://keystone", "https://u:p@keystone"} {
		if _, err := NewKeystone(bad, KeystoneOptions{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
