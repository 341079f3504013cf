package cinderapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzRequest sends any request to a service that has one of each thing. Whatever
// it is, the answer is one of ours, in JSON, and no error of ours.
func FuzzRequest(f *testing.F) {
	seeds := 0
	add := func(method, path, version, body string) {
		seeds++
		f.Add(method, path, version, body)
	}
	ids := strings.NewReplacer("/V", "/"+goldVolume, `"V"`, `"`+goldVolume+`"`, "/S", "/"+goldSnapshot, `"S"`, `"`+goldSnapshot+`"`, "/B", "/"+goldBackup, `"B"`, `"`+goldBackup+`"`)
	for _, m := range members {
		add(m.method, "/volume/v3/"+projectA+ids.Replace(m.path), "volume 3.70", ids.Replace(m.body))
	}
	for _, b := range badBodies {
		if len(b.body) < 1000 {
			method, path, _ := strings.Cut(b.call, " ")
			add(method, "/volume/v3"+ids.Replace(path), "volume "+b.version, ids.Replace(b.body))
		}
	}
	for _, r := range routes {
		add(r.method, "/volume/v3/"+strings.NewReplacer("{id}", goldVolume, "{key}", "a").Replace(r.path)+"?limit=1&sort=name:asc,size&name~=a&with_count=1", "volume 3.70", `{}`)
	}
	add("GET", "/volume/", "", "")
	add("GET", "/image", "latest", "")
	if seeds < 100 {
		f.Fatalf("%d seeds", seeds)
	}
	f.Fuzz(func(t *testing.T, method, path, version, body string) {
		s := newServer(t)
		s.gold()
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Skip()
		}
		for _, caller := range []string{"alice", "bob", "root"} {
			r := httptest.NewRequestWithContext(t.Context(), "POST", "http://localhost/", strings.NewReader(body))
			r.Method, r.URL = method, u
			r.Header.Set("X-Auth-Token", caller)
			r.Header.Set("OpenStack-API-Version", version)
			w := httptest.NewRecorder()
			before := s.state()
			s.handler.ServeHTTP(w, r)
			if w.Code < 200 || w.Code >= 500 && w.Code != http.StatusServiceUnavailable {
				t.Fatalf("%d %s\n%s", w.Code, w.Body, s.log.String())
			}
			if b := w.Body.Bytes(); len(b) > 0 && (!json.Valid(b) || !utf8.Valid(b)) {
				t.Fatalf("%d %q", w.Code, b)
			}
			if w.Header().Get("X-Openstack-Request-Id") == "" {
				t.Fatal("no request ID")
			}
			// A request that was refused, one that reads and one of somebody else
			// change nothing of alice's.
			after := s.state()
			if (w.Code >= 400 || method == http.MethodGet) && after != before {
				t.Fatalf("%d, and changed\n%s\nto\n%s", w.Code, before, after)
			}
			if caller == "bob" && strings.Contains(w.Body.String(), "nightly") {
				t.Fatalf("bob sees %s", w.Body)
			}
		}
	})
}

// FuzzPythonMap reads maps as Python and JSON write them.
func FuzzPythonMap(f *testing.F) {
	for _, s := range []string{`{}`, `{'a': 'b'}`, `{"a":"b","c":"d"}`, `{u'a': u"it's"}`, `{'a': 'it\'s'}`, `{'a'}`, `{'a': 1}`, `{`, `{'a': 'b'} x`, `{,}`, `{'a':'\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, ok := pythonMap(s)
		if !ok {
			return
		}
		o := map[string]any{}
		for k, v := range m {
			if strings.ContainsFunc(k+v, func(r rune) bool { return r < ' ' || r > '~' }) {
				return // written with escapes that are not read
			}
			o[k] = v
		}
		again, ok := pythonMap(repr(o))
		if !ok || len(again) != len(m) {
			t.Fatalf("%q is %v, which is written %s and read as %v", s, m, repr(o), again)
		}
		for k, v := range m {
			if again[k] != v {
				t.Fatalf("%q: %q, want %q", k, again[k], v)
			}
		}
	})
}
