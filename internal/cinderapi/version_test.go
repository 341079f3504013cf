package cinderapi

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	s := newServer(t)
	for _, tt := range []struct {
		header string // "-" = none
		status int
		answer string // the version in the answer's header
		text   string
	}{
		{"-", 200, "3.0", ""},
		{"volume 3.70", 200, "3.70", ""},
		{"volume 3.0", 200, "3.0", ""},
		{"volume latest", 200, "3.70", ""},
		{"compute 2.1, volume 3.5", 200, "3.5", ""},
		{"compute 2.1", 200, "3.0", ""},
		{"volume 3.71", 406, "3.0", "Version 3.71 is not supported by the API. Minimum is 3.0 and maximum is 3.70."},
		{"volume 2.0", 406, "3.0", "Version 2.0 is not supported by the API. Minimum is 3.0 and maximum is 3.70."},
		{"volume 3.99999999999999999999", 406, "3.0", "is not supported"},
		{"volume 3", 400, "3.0", "API Version String 3 is of invalid format. Must be of format MajorNum.MinorNum."},
		{"volume 3.07", 400, "3.0", "invalid format"},
		{"volume", 400, "3.0", "invalid format"},
		{"volume x", 400, "3.0", "invalid format"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/volume/v3/volumes", nil)
		r.Header.Set("X-Auth-Token", "alice")
		if tt.header != "-" {
			r.Header.Set("OpenStack-API-Version", tt.header)
		}
		got := s.do(t, r)
		if got.status != tt.status || !strings.Contains(got.raw, tt.text) {
			t.Errorf("%q: %d %s, want %d %q", tt.header, got.status, got.raw, tt.status, tt.text)
		}
		if v := got.header.Get("OpenStack-API-Version"); v != "volume "+tt.answer {
			t.Errorf("%q: answer of %q, want %q", tt.header, v, tt.answer)
		}
		if got.header.Get("Vary") != "OpenStack-API-Version" {
			t.Errorf("%q: Vary %q", tt.header, got.header.Get("Vary"))
		}
	}
}

func TestDiscovery(t *testing.T) {
	s := newServer(t)
	for path, status := range map[string]int{
		"/volume": 300, "/volume/": 300, "/volume/v3": 200, "/volume/v3/": 200, "/image": 300, "/image/": 300,
		"/volume/v2/": 404, "/": 404, "/image/v2/images": 404, "/volume//": 404,
	} {
		got := s.send(t, "", "", "GET", path, "")
		if got.status != status {
			t.Errorf("GET %s: %d, want %d", path, got.status, status)
		}
		if status == 404 {
			got.fault(t, 404)
		}
	}
	v := s.send(t, "", "", "GET", "/volume/", "").body["versions"]
	one, ok := v.([]any)[0].(map[string]any)
	if !ok || one["version"] != "3.70" || one["min_version"] != "3.0" || one["id"] != "v3.0" || one["status"] != "CURRENT" {
		t.Errorf("versions: %v", v)
	}
	if got := s.send(t, "", "", "GET", "/volume/v3/", "").raw; !strings.Contains(got, `"https://cloud.example:8776/volume/v3/"`) {
		t.Errorf("no link to the public URL in %s", got)
	}
}

func TestPaths(t *testing.T) {
	s := newServer(t)
	id := s.newVolume(t, "alice", "db")
	for _, tt := range []struct {
		caller, method, path string
		status               int
		text                 string
	}{
		{"alice", "GET", "/volume/v3/volumes/" + id, 200, ""},
		{"alice", "GET", "/volume/v3/" + projectA + "/volumes/" + id, 200, ""},
		{"alice", "HEAD", "/volume/v3/volumes", 200, ""},
		{"alice", "GET", "/volume/v3/" + projectB + "/volumes/" + id, 400, "Malformed request url"},
		{"root", "GET", "/volume/v3/" + projectB + "/volumes/" + id, 400, "Malformed request url"},
		{"alice", "GET", "/volume/v3/" + projectA + "/nothing", 404, "The resource could not be found."},
		{"alice", "GET", "/volume/v3/" + projectA, 404, "The resource could not be found."},
		{"alice", "PATCH", "/volume/v3/volumes/" + id, 404, "The resource could not be found."},
		{"alice", "GET", "/volume/v3/volumes/", 404, "The resource could not be found."},
		{"alice", "GET", "/volume/v3/volumes/a%2Fb", 404, "Volume a/b could not be found."},
		{"alice", "GET", "/volume/v3/volumes/summary", 404, "Volume summary could not be found."},
	} {
		got := s.send(t, tt.caller, "", tt.method, tt.path, "")
		if got.status != tt.status || !strings.Contains(got.raw, tt.text) {
			t.Errorf("%s %s as %s: %d %s, want %d %q", tt.method, tt.path, tt.caller, got.status, got.raw, tt.status, tt.text)
		}
	}
	if _, ok := s.send(t, "alice", "3.12", "GET", "/volume/v3/volumes/summary", "").body["volume-summary"]; !ok {
		t.Error("no summary since 3.12")
	}
}

func TestRequestID(t *testing.T) {
	s := newServer(t)
	form := regexp.MustCompile(`^req-[0-9a-f-]{36}$`)
	seen := map[string]bool{}
	for _, path := range []string{"/volume/", "/volume/v3/volumes", "/volume/v3/volumes/x", "/nothing"} {
		got := s.send(t, "alice", "", "GET", path, "")
		id := got.header.Get("x-openstack-request-id")
		if !form.MatchString(id) || seen[id] || got.header.Get("x-compute-request-id") != id {
			t.Errorf("%s: request ID %q", path, id)
		}
		seen[id] = true
		if !strings.Contains(s.log.String(), id) {
			t.Errorf("%s: nothing logged of %s", path, id)
		}
	}
	for line := range strings.Lines(s.log.String()) {
		if !strings.Contains(line, `"request_id":"req-`) {
			t.Errorf("log line without the request ID: %s", line)
		}
	}
}

func TestUnknownCaller(t *testing.T) {
	s := newServer(t)
	for _, tt := range []struct {
		token  string
		status int
		key    string
		text   string
	}{
		{"", 401, "error", "The request you have made requires authentication."},
		{"guess", 401, "error", "The request you have made requires authentication."},
		{"late", 401, "error", "The token has expired."},
		{"busy", 503, "serviceUnavailable", "The identity service cannot be asked now: try again."},
		{"down", 503, "serviceUnavailable", "The identity service cannot be asked now: try again."},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/volume/v3/volumes", strings.NewReader(`{"volume":{"size":1}}`))
		r.Header.Set("X-Auth-Token", tt.token)
		got := s.do(t, r)
		o := got.want(t, tt.status, tt.key)
		if o["message"] != tt.text || o["code"] != float64(tt.status) {
			t.Errorf("%s: %s", tt.token, got.raw)
		}
		if at := got.header.Get("WWW-Authenticate"); (at == `Keystone uri="https://cloud.example:5000"`) != (tt.status == http.StatusUnauthorized) {
			t.Errorf("%s: WWW-Authenticate %q", tt.token, at)
		}
		if after := got.header.Get("Retry-After"); (after == "2") != (tt.token == "down") {
			t.Errorf("%s: Retry-After %q", tt.token, after)
		}
	}
	for _, cause := range []string{"dial 10.0.0.7", "dial 10.0.0.8"} {
		if !strings.Contains(s.log.String(), cause) {
			t.Errorf("the cause %s was not logged", cause)
		}
	}
	if strings.Contains(s.log.String(), internal) {
		t.Errorf("a refused caller is logged as an error of ours: %s", s.log.String())
	}
	if len(s.entries) != 0 || len(s.volumes) != 0 {
		t.Errorf("done by nobody: %v, %v", s.entries, s.volumes)
	}
}
