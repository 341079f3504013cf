package cinderapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/identity"
)

func TestFaults(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "alice", "db")
	for _, tt := range []struct {
		err    error
		status int
		key    string
		text   string
	}{
		{Invalid("no %d", 1), 400, "badRequest", "no 1"},
		{fmt.Errorf("wrapped: %w", Invalid("no")), 400, "badRequest", "no"},
		{Forbidden("x"), 403, "forbidden", "Policy doesn't allow x to be performed."},
		{&Fault{409, "busy"}, 409, "conflictingRequest", "busy"},
		{OverQuota("too much"), 413, "overLimit", "too much"},
		{&Fault{501, "never"}, 501, "notImplemented", "never"},
		{Unavailable("no agent"), 503, "serviceUnavailable", "no agent"},
		{context.DeadlineExceeded, 503, "serviceUnavailable", "The request was not completed in time: try again."},
		{errors.New("open /secret: no"), 500, "computeFault", internal},
		{&Fault{200, "odd"}, 500, "computeFault", internal},
	} {
		s.fail = tt.err
		got := s.as(t, "alice", "", "GET", "/volumes/"+vol, "")
		o := got.want(t, tt.status, tt.key)
		if o["message"] != tt.text || o["code"] != float64(tt.status) || strings.Contains(got.raw, "secret") {
			t.Errorf("%v: %s", tt.err, got.raw)
		}
		if (got.header.Get("Retry-After") == "0") != (tt.status == 413) || (o["retryAfter"] == "0") != (tt.status == 413) {
			t.Errorf("%v: %v %s", tt.err, got.header, got.raw)
		}
	}
	if !strings.Contains(s.log.String(), "open /secret: no") {
		t.Error("the cause of a 500 was not logged")
	}
}

// broken panics.
type broken struct{ *memory }

func (broken) Types() []Type { panic("out of types") }

// unwilling is a memory that takes no change.
type unwilling struct{ *memory }

var errUnwilling = Unavailable("No live agent for the volume's host.")

func (unwilling) CreateVolume(context.Context, identity.Caller, NewVolume) (Volume, error) {
	return Volume{}, errUnwilling
}

func (unwilling) UpdateVolume(context.Context, string, Update) (Volume, error) {
	return Volume{}, errUnwilling
}
func (unwilling) ExtendVolume(context.Context, string, int64) error { return errUnwilling }
func (unwilling) ResetVolume(context.Context, string, string) error { return errUnwilling }
func (unwilling) DeleteVolume(context.Context, string, bool) error  { return errUnwilling }
func (unwilling) CreateSnapshot(context.Context, identity.Caller, NewSnapshot) (Snapshot, error) {
	return Snapshot{}, errUnwilling
}

func (unwilling) UpdateSnapshot(context.Context, string, Update) (Snapshot, error) {
	return Snapshot{}, errUnwilling
}
func (unwilling) ResetSnapshot(context.Context, string, string) error { return errUnwilling }
func (unwilling) DeleteSnapshot(context.Context, string) error        { return errUnwilling }
func (unwilling) CreateBackup(context.Context, identity.Caller, NewBackup) (Backup, error) {
	return Backup{}, errUnwilling
}

func (unwilling) UpdateBackup(context.Context, string, Update) (Backup, error) {
	return Backup{}, errUnwilling
}
func (unwilling) DeleteBackup(context.Context, string, bool) error  { return errUnwilling }
func (unwilling) ResetBackup(context.Context, string, string) error { return errUnwilling }
func (unwilling) Restore(context.Context, identity.Caller, string, NewRestore) (Restoring, error) {
	return Restoring{}, errUnwilling
}

// TestRefusedChanges has each change refused by the service: that is what the
// client is told, and never that it was done.
func TestRefusedChanges(t *testing.T) {
	for _, m := range members {
		if m.method == "GET" {
			continue
		}
		s := newServer(t)
		v, sn, b := s.things(t)
		ids := strings.NewReplacer("/V", "/"+v, `"V"`, `"`+v+`"`, "/S", "/"+sn, `"S"`, `"`+sn+`"`, "/B", "/"+b, `"B"`, `"`+b+`"`)
		o := s.options()
		o.Service = unwilling{s.memory}
		s.handler, s.entries = New(o), nil
		got := s.as(t, "root", "3.60", m.method, ids.Replace(m.path), ids.Replace(m.body))
		if text := got.fault(t, 503); text != errUnwilling.Message {
			t.Errorf("%s %s: %q", m.method, m.path, text)
		}
		if len(s.entries) != 1 || s.entries[0].Status != 503 || s.entries[0].Fault != errUnwilling.Message {
			t.Errorf("%s %s: audited %+v", m.method, m.path, s.entries)
		}
	}
}

// TestBrokenService has every look fail.
func TestBrokenService(t *testing.T) {
	s := newServer(t)
	s.gold()
	s.fail = errors.New("disk is gone")
	for _, path := range []string{
		"/volumes", "/volumes/detail", "/volumes/summary", "/volumes/" + goldVolume, "/snapshots", "/snapshots/detail", "/snapshots/" + goldSnapshot,
		"/backups", "/backups/detail", "/backups/" + goldBackup, "/os-quota-sets/science", "/limits", "/os-services",
		"/volumes/" + goldVolume + "/metadata", "/volumes/" + goldVolume + "/metadata/a", "/backups/" + goldBackup + "/export_record",
	} {
		if text := s.as(t, "root", "3.70", "GET", path, "").fault(t, 500); text != internal {
			t.Errorf("%s: %s", path, text)
		}
	}
	s.as(t, "root", "", "PUT", "/os-quota-sets/science", `{"quota_set":{"backups":1}}`).fault(t, 500)
	s.as(t, "root", "", "DELETE", "/os-quota-sets/science", "").fault(t, 500)
}

func TestPanic(t *testing.T) {
	s := newServer(t)
	o := s.options()
	o.Service = broken{s.memory}
	s.handler = New(o)
	if text := s.as(t, "alice", "", "GET", "/types", "").fault(t, 500); text != internal {
		t.Error(text)
	}
	if !strings.Contains(s.log.String(), "out of types") {
		t.Error("the panic was not logged")
	}
}

func TestAudit(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "alice", "db")
	b := s.newBackup(t, "alice", vol, "one")
	s.entries = nil
	for _, tt := range []struct {
		caller, method, path, body string
		action, kind, id           string
		status                     int
		fault                      string
	}{
		{"alice", "POST", "/backups", `{"backup":{"volume_id":"` + vol + `","name":"two"}}`, "backup.create", "backup", "new", 202, ""},
		{"alice", "PUT", "/backups/" + b, `{"backup":{"name":"x"}}`, "backup.update", "backup", b, 200, ""},
		{"alice", "POST", "/backups/" + b + "/action", `{"os-force_delete":{}}`, "backup.force_delete", "backup", b, 403, "Policy doesn't allow"},
		{"alice", "POST", "/backups/" + b + "/action", `{"x":{}}`, "backup.action", "backup", b, 400, "no such action"},
		{"bob", "DELETE", "/backups/" + b, "", "backup.delete", "backup", b, 404, "could not be found"},
		{"root", "PUT", "/os-quota-sets/science", `{"quota_set":{"backups":1}}`, "quota.update", "project", "science", 200, ""},
		{"alice", "POST", "/backups", `{"backup":{"volume_id":"` + vol + `"}}`, "backup.create", "backup", "", 413, "Maximum number"},
		{"alice", "POST", "/backups/" + b + "/restore", `{"restore":{}}`, "backup.restore", "backup", b, 202, ""},
		{"alice", "DELETE", "/backups/" + b, "", "backup.delete", "backup", b, 202, ""},
		{"alice", "PUT", "/volumes/" + vol + "/metadata", `{"metadata":{"a":"1"}}`, "volume.metadata", "volume", vol, 200, ""},
		{"alice", "DELETE", "/volumes/" + vol, "", "volume.delete", "volume", vol, 202, ""},
	} {
		got := s.as(t, tt.caller, "3.60", tt.method, tt.path, tt.body)
		if len(s.entries) != 1 {
			t.Fatalf("%s %s: %d entries: %s", tt.method, tt.path, len(s.entries), got.raw)
		}
		e := s.entries[0]
		s.entries = nil
		if tt.id == "new" {
			tt.id = str(got.want(t, 202, "backup"), "id")
		}
		if e.Action != tt.action || e.Object != (Object{tt.kind, tt.id}) || e.Status != tt.status || e.Status != got.status ||
			!strings.Contains(e.Fault, tt.fault) || (e.Fault == "") != (tt.fault == "") ||
			e.Caller.UserName != tt.caller || e.RequestID != got.header.Get("X-Openstack-Request-Id") {
			t.Errorf("%s %s: %+v", tt.method, tt.path, e)
		}
	}
	for _, path := range []string{"/backups", "/volumes/x", "/limits", "/nothing"} {
		s.as(t, "alice", "", "GET", path, "")
	}
	if len(s.entries) != 0 {
		t.Errorf("reading was audited: %+v", s.entries)
	}
}

// TestEveryChangeIsAudited has no call that changes something without an entry.
func TestEveryChangeIsAudited(t *testing.T) {
	for _, r := range routes {
		reads := r.method == http.MethodGet || r.path == "workers/cleanup" // there is none
		if (r.action == "") != reads {
			t.Errorf("%s %s: action %q", r.method, r.path, r.action)
		}
	}
	if !slices.ContainsFunc(routes, func(r route) bool { return r.path == "backups/{id}/restore" }) {
		t.Error("no routes")
	}
}

// TestNoOptions has a handler without anything that can be left out.
func TestNoOptions(t *testing.T) {
	h := New(Options{Service: newMemory(), Authenticate: func(*http.Request) (identity.Caller, error) { return callers["alice"], nil }})
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "http://192.0.2.7:8776/volume/v3/volumes", strings.NewReader(`{"volume":{"size":1}}`))
	h.ServeHTTP(w, r)
	if w.Code != 202 || !strings.Contains(w.Body.String(), `"http://192.0.2.7:8776/volume/v3/`+projectA+`/volumes/`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestReader: who is a reader and nothing else looks and changes nothing.
func TestReader(t *testing.T) {
	s := newServer(t)
	for _, r := range routes {
		path := "/" + strings.NewReplacer("{id}", "5b1a5a4e-8f0c-4c0e-9b7a-0d5c7f3f2a11", "{key}", "k").Replace(r.path)
		got := s.as(t, "rita", "3.70", r.method, path, "")
		if r.method == http.MethodGet {
			if member := s.as(t, "alice", "3.70", r.method, path, ""); got.status != member.status {
				t.Errorf("%s %s: %d %s, a member gets %d", r.method, path, got.status, got.raw, member.status)
			}
			continue
		}
		got.fault(t, 403)
	}
}

// TestExplain: what the service's errors are to callers is said by its owner; the cause is
// logged.
func TestExplain(t *testing.T) {
	s := newServer(t)
	vol := s.newVolume(t, "alice", "db")
	away := errors.New("postgres://secret is away")
	o := s.options()
	o.Explain = func(err error) error {
		if errors.Is(err, away) {
			return fmt.Errorf("%w (%w)", Unavailable("its database does not answer"), err)
		}
		return err
	}
	s.handler = New(o)
	s.fail = fmt.Errorf("list volumes: %w", away)
	if text := s.as(t, "alice", "", "GET", "/volumes/"+vol, "").fault(t, 503); text != "its database does not answer" {
		t.Errorf("%q", text)
	}
	if !strings.Contains(s.log.String(), "list volumes: postgres://secret is away") {
		t.Error("the cause was not logged")
	}
	s.fail = errors.New("odd")
	if text := s.as(t, "alice", "", "GET", "/volumes/"+vol, "").fault(t, 500); text != internal {
		t.Errorf("%q", text)
	}
}
