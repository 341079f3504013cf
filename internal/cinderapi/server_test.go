package cinderapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/identity"
)

// The projects and callers of the tests: a token is the caller's name.
const (
	projectA = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
	projectB = "f9e8d7c6b5a493827160f5e4d3c2b1a0"
)

var callers = map[string]identity.Caller{
	"alice": {UserID: "a11ce000000000000000000000000000", UserName: "alice", ProjectID: projectA, ProjectName: "science"},
	"bob":   {UserID: "b0b00000000000000000000000000000", UserName: "bob", ProjectID: projectB, ProjectName: "sales"},
	"rita":  {UserID: "417a0000000000000000000000000000", UserName: "rita", ProjectID: projectA, ProjectName: "science", Roles: []string{"reader"}},
	"root":  {UserID: "00700000000000000000000000000000", UserName: "root", ProjectID: projectA, ProjectName: "science", Admin: true},
}

// refused is an error that knows its status.
type refused struct {
	status int
	text   string
}

func (r refused) Error() string   { return r.text }
func (r refused) HTTPStatus() int { return r.status }

func authenticate(r *http.Request) (identity.Caller, error) {
	switch token := r.Header.Get("X-Auth-Token"); token {
	case "busy":
		return identity.Caller{}, refused{http.StatusServiceUnavailable, "dial 10.0.0.7: refused"}
	case "down":
		return identity.Caller{}, &identity.Error{Status: http.StatusServiceUnavailable, Text: "It does not answer.", RetryAfter: 1500 * time.Millisecond, Cause: errors.New("dial 10.0.0.8: refused")}
	case "late":
		return identity.Caller{}, refused{http.StatusUnauthorized, "The token has expired."}
	default:
		c, ok := callers[token]
		if !ok {
			return c, errors.New("token is not known: " + token)
		}
		return c, nil
	}
}

// server is a handler over a memory, with what it logged and audited.
type server struct {
	*memory
	handler http.Handler
	mu      sync.Mutex
	entries []Entry
	log     bytes.Buffer
}

func newServer(tb testing.TB) *server {
	tb.Helper()
	s := &server{memory: newMemory()}
	s.handler = New(s.options())
	return s
}

func (s *server) options() Options {
	return Options{
		Service: s.memory, Authenticate: authenticate, Logger: slog.New(slog.NewJSONHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Public: "https://cloud.example:8776/", AuthURL: "https://cloud.example:5000",
		Audit: func(_ context.Context, e Entry) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.entries = append(s.entries, e)
		},
	}
}

// reply is an answer that was read.
type reply struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

// as sends a request of a caller, about their own project. version is "" or "3.70".
func (s *server) as(tb testing.TB, caller, version, method, path, body string) reply {
	tb.Helper()
	return s.send(tb, caller, version, method, "/volume/v3/"+callers[caller].ProjectID+path, body)
}

func (s *server) send(tb testing.TB, caller, version, method, url, body string) reply {
	tb.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(tb.Context(), method, "http://localhost:8776/", in)
	var err error
	if r.URL, err = r.URL.Parse(url); err != nil {
		tb.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", caller)
	if version != "" {
		r.Header.Set("OpenStack-API-Version", "volume "+version)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return s.do(tb, r)
}

func (s *server) do(tb testing.TB, r *http.Request) reply {
	tb.Helper()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	got := reply{status: w.Code, header: w.Header(), raw: w.Body.String()}
	if got.raw != "" {
		if err := json.Unmarshal([]byte(got.raw), &got.body); err != nil {
			tb.Fatalf("%s %s: %v in %q", r.Method, r.URL, err, got.raw)
		}
	}
	return got
}

// want fails unless the answer has a status; it returns the object under key.
func (r reply) want(tb testing.TB, status int, key string) map[string]any {
	tb.Helper()
	if r.status != status {
		tb.Fatalf("status %d, want %d: %s", r.status, status, r.raw)
	}
	if key == "" {
		return nil
	}
	o, ok := r.body[key].(map[string]any)
	if !ok {
		tb.Fatalf("no %q in %s", key, r.raw)
	}
	return o
}

// fault fails unless the answer is a fault of that status, and returns its text.
func (r reply) fault(tb testing.TB, status int) string {
	tb.Helper()
	o := r.want(tb, status, faultKey(status))
	text, ok := o["message"].(string)
	if !ok || len(r.body) != 1 || o["code"] != float64(status) {
		tb.Fatalf("odd fault %s", r.raw)
	}
	return text
}

// list returns the objects under a key.
func (r reply) list(tb testing.TB, key string) []map[string]any {
	tb.Helper()
	r.want(tb, http.StatusOK, "")
	items, ok := r.body[key].([]any)
	if !ok {
		tb.Fatalf("no list %q in %s", key, r.raw)
	}
	all := make([]map[string]any, len(items))
	for i, e := range items {
		if all[i], ok = e.(map[string]any); !ok {
			tb.Fatalf("odd list %s", r.raw)
		}
	}
	return all
}

// text is a string in an object.
func str(o map[string]any, key string) string {
	s, ok := o[key].(string)
	if !ok {
		return ""
	}
	return s
}

// newVolume makes a volume of a caller's and returns its ID.
func (s *server) newVolume(tb testing.TB, caller, name string) string {
	tb.Helper()
	return str(s.as(tb, caller, "", "POST", "/volumes", `{"volume":{"size":2,"name":"`+name+`"}}`).want(tb, 202, "volume"), "id")
}

// newBackup makes a backup of a volume and returns its ID.
func (s *server) newBackup(tb testing.TB, caller, volume, name string) string {
	tb.Helper()
	return str(s.as(tb, caller, "", "POST", "/backups", `{"backup":{"volume_id":"`+volume+`","name":"`+name+`"}}`).want(tb, 202, "backup"), "id")
}
