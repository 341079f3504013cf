package identity

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// volumes is a volume service that lists nothing and remembers who asked.
type volumes struct {
	ways Chain
	base string

	mu      sync.Mutex
	callers []Caller
}

func (v *volumes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	version := map[string]any{
		"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0",
		"links": []map[string]string{{"rel": "self", "href": v.base + "/volume/v3/"}},
	}
	answer := map[string]any{"versions": []any{version}}
	if len(path) > 2 {
		c, err := v.ways.Authenticate(r)
		if err != nil {
			WriteError(w, err, v.base)
			return
		}
		// From 3.67 on, a project in the path is not needed.
		if c.ProjectID != "" && path[2] != "volumes" && c.ProjectID != path[2] {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		v.mu.Lock()
		v.callers = append(v.callers, c)
		v.mu.Unlock()
		answer = map[string]any{"volumes": []any{}}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	_ = writeJSON(w, http.StatusOK, b)
}

// last is who asked last.
func (v *volumes) last() Caller {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.callers) == 0 {
		return Caller{}
	}
	return v.callers[len(v.callers)-1]
}

// cloud serves identity and volumes on one port, with every way to authenticate.
func (r *rig) cloud(t *testing.T, adminToken string) *volumes {
	t.Helper()
	s, err := New(Options{File: r.name})
	must(t, err)
	basic, err := s.Basic()
	must(t, err)
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(adminToken), 0o600))
	admin, err := NewAdminToken(vfs.OS(), file, Project{})
	must(t, err)
	v := &volumes{}
	mux := http.NewServeMux()
	mux.Handle("/", s)
	mux.Handle("/volume/", v)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	noauth, err := NewNoAuth(server.Listener.Addr())
	must(t, err)
	v.base, v.ways = server.URL, Chain{s, admin, basic, noauth}
	r.Service, r.url = s, server.URL
	return v
}

// The commands of DevStack's openrc, of scripts from the days of Identity v2, and those
// for a service without Keystone.
func TestCinderClient(t *testing.T) {
	cinder := tool(t, "cinder", "python3-cinderclient")
	openstack := tool(t, "openstack", "python3-openstackclient")
	r := newRig(t)
	const adminToken = "0123456789abcdef"
	v := r.cloud(t, adminToken)
	demo := r.ids["project demo"]
	for _, c := range []struct {
		name    string
		program string
		env     []string
		args    string
		want    Caller
	}{
		{"openrc", cinder, r.as("demo", secret, "demo"), "list", Caller{UserName: "demo", ProjectID: demo}},
		{"v2", cinder, nil, "--os-auth-url " + r.url + "/v2 --os-tenant-name demo --os-username demo --os-password " + secret + " list", Caller{UserName: "demo", ProjectID: demo}},
		{"noauth", cinder, nil, "--os-auth-type noauth --os-user-id bob --os-project-id p1 --os-endpoint " + r.url + "/volume/v3 list", Caller{UserName: "bob", ProjectID: "p1", Admin: true}},
		{"openstack", openstack, r.as("admin", secret, "demo"), "volume list", Caller{UserName: "admin", ProjectID: demo, Admin: true}},
		{"admin token", openstack, nil, "--os-auth-type admin_token --os-token " + adminToken + " --os-endpoint " + r.url + "/volume/v3/" + demo + " volume list", Caller{UserName: "admin_token", Admin: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			succeeds(t, c.env, nil, c.program, strings.Fields(c.args)...)
			if got := v.last(); got.UserName != c.want.UserName || got.ProjectID != c.want.ProjectID || got.Admin != c.want.Admin {
				t.Fatalf("%+v, want %+v", got, c.want)
			}
		})
	}
	s := client(t, nil, cinder, strings.Fields("--os-auth-url "+r.url+"/v2 --os-tenant-name demo --os-username demo --os-password wrong list")...)
	if s.code != 1 || !strings.Contains(s.err, "requires authentication. (HTTP 401)") {
		t.Errorf("%+v", s)
	}
}

// Every way to say where the service is leads to a token and to the volume service,
// under each name that it has.
func TestKeystoneAuth(t *testing.T) {
	tool(t, "openstack", "python3-openstackclient") // keystoneauth1 comes with it
	r := newRig(t)
	v := r.cloud(t, "0123456789abcdef")
	script := fmt.Sprintf(`
import json, sys
from keystoneauth1 import session
from keystoneauth1.identity import generic, v3
from keystoneauth1 import http_basic
base, project, password = %q, %q, %q
out = {}
for path in ('/identity', '/identity/', '/identity/v3', '/identity/v3/', '/v2', '/v2.0'):
    auth = generic.Password(auth_url=base + path, username='demo', password=password, project_name='demo', user_domain_name='Default', project_domain_id='default')
    s = session.Session(auth=auth)
    for kind in ('volumev3', 'block-storage'):
        out[path + ' ' + kind] = s.get_endpoint(service_type=kind, interface='public', region_name='RegionOne')
    out[path] = auth.get_access(s).project_id
auth = v3.Password(auth_url=base + '/identity/v3', username='demo', password=password, project_id=project)
out['no domain'] = session.Session(auth=auth).get_project_id()
auth = v3.Token(auth_url=base + '/identity/v3', token=session.Session(auth=auth).get_token(), project_name='other', project_domain_id='default')
out['by token'] = auth.get_access(session.Session()).project_name
s = session.Session(auth=http_basic.HTTPBasicAuth(endpoint=base + '/volume/v3/' + project, username='demo', password=password))
out['basic'] = s.get(base + '/volume/v3/' + project + '/volumes').status_code
json.dump(out, sys.stdout)
`, r.url, r.ids["project demo"], secret)
	var out map[string]any
	succeeds(t, nil, &out, "/usr/bin/python3", "-c", script)
	if len(out) != 6*3+3 {
		t.Errorf("%v", out)
	}
	for key, got := range out {
		var want any = r.ids["project demo"]
		switch {
		case key == "by token":
			want = "other"
		case key == "basic":
			want = 200.0
		case strings.Contains(key, " v"), strings.Contains(key, " b"):
			want = r.url + "/volume/v3/" + r.ids["project demo"]
		}
		if got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
	if c := v.last(); c.UserName != "demo" || c.ProjectID != r.ids["project demo"] || c.Admin {
		t.Errorf("%+v", c)
	}
}
