package identity

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/identity", "/identity/", "/v2", "/v2/", "/v2.0", "/v2.0/"} {
		a := r.do(t, "GET", path, "")
		values, _ := a.at("versions/values").([]any)
		if a.status != http.StatusMultipleChoices || len(values) != 1 || a.header.Get("Location") != r.url+"/identity/v3/" {
			t.Errorf("%s: %d %s", path, a.status, a.text)
		}
		if !strings.Contains(a.text, `"href":"`+r.url+`/identity/v3/"`) {
			t.Errorf("%s does not point at v3: %s", path, a.text)
		}
	}
	for _, path := range []string{"/identity/v3", "/identity/v3/"} {
		if a := r.do(t, "GET", path, ""); a.status != http.StatusOK || a.at("version/status") != "stable" || a.at("version/id") != "v3.14" {
			t.Errorf("%s: %d %s", path, a.status, a.text)
		}
	}
}

func TestHeaders(t *testing.T) {
	r := newRig(t)
	id := regexp.MustCompile(`^req-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for _, path := range []string{"/identity", "/identity/v3", "/identity/v3/projects", "/identity/nothing", tokens} {
		a := r.do(t, "GET", path, "")
		got := a.header.Get("x-openstack-request-id")
		if !id.MatchString(got) || seen[got] || a.header.Get("Vary") != "X-Auth-Token" || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", path, a.header)
		}
		seen[got] = true
	}
	a := r.do(t, "GET", "/identity/v3/projects", "")
	if want := `Keystone uri="` + r.url + `/identity/v3"`; a.header.Get("WWW-Authenticate") != want {
		t.Errorf("%v, want %s", a.header, want)
	}
	if a := r.do(t, "PUT", tokens, ""); a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != "DELETE, GET, HEAD, POST" || a.at("error/title") != "Method Not Allowed" {
		t.Errorf("%d %v %s", a.status, a.header, a.text)
	}
	for _, path := range []string{"/", "/identity/v4", "/identity//v3", "/v2.0/tokens", "/identity/v3/projects/a/b"} {
		if a := r.do(t, "GET", path, ""); a.status != http.StatusNotFound || a.at("error/code") != 404.0 {
			t.Errorf("%s: %d %s", path, a.status, a.text)
		}
	}
}

func TestBaseURL(t *testing.T) {
	r := newRig(t)
	for host, good := range map[string]bool{
		"cairn.example": true, "cairn.example:8776": true, "10.0.0.1:1": true, "[::1]:8776": true, "[fe80::1]": true, "a_b-c.d": true,
		"a b": false, "a/b": false, "a\"b": false, "user@host": false, ":80": false, "host:": false, "host:0": false, "host:99999": false, "host:x": false,
		"[::1": false, "[x]:80": false, "::1": false, "[fe80::1%25eth0]:1": false, ".": false, "[127.0.0.1]": false, "[::1]x:80": false, strings.Repeat("x", 300): false,
	} {
		if validHost(host) != good {
			t.Errorf("%q: %v, want %v", host, !good, good)
		}
	}
	if a := r.do(t, "GET", "/identity", "", "Host", "cairn.example:8776"); !strings.Contains(a.text, "http://cairn.example:8776/identity/v3/") {
		t.Errorf("%s", a.text)
	}
	if a := r.do(t, "GET", "/identity", "", "Host", "a_b;c"); a.status != 400 {
		t.Errorf("%d %s", a.status, a.text)
	}
	s, err := New(Options{File: r.name, PublicURL: "https://backup.example/cairn/"})
	must(t, err)
	r.serve(t, s)
	if a := r.do(t, "GET", "/identity", "", "Host", "evil.example"); !strings.Contains(a.text, `"https://backup.example/cairn/identity/v3/"`) || strings.Contains(a.text, "evil") {
		t.Errorf("%s", a.text)
	}
	for _, bad := range []string{"backup.example", "ftp://x", "https://", "https://u:p@x", "https://x?y", "https://x#y", "https://a b", "://"} {
		if _, err := New(Options{File: r.name, PublicURL: bad}); err == nil || !strings.Contains(err.Error(), "public URL") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
