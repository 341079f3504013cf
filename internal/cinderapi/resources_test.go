package cinderapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/identity"
)

func TestMetadata(t *testing.T) {
	s := newServer(t)
	vol, snap, _ := s.things(t)
	for _, at := range []string{"/volumes/" + vol, "/snapshots/" + snap} {
		step := func(version, method, tail, body, key, want string) {
			t.Helper()
			got := s.as(t, "alice", version, method, at+"/metadata"+tail, body)
			if key == "" {
				got.want(t, 200, "")
				return
			}
			if o := got.want(t, 200, key); fmt.Sprint(o) != want {
				t.Errorf("%s %s %s: %v, want %s", method, at, tail, o, want)
			}
		}
		step("", "GET", "", "", "metadata", "map[a:1]")
		step("", "POST", "", `{"metadata":{"b":"2"}}`, "metadata", "map[a:1 b:2]")
		step("", "GET", "/b", "", "meta", "map[b:2]")
		step("", "PUT", "/b", `{"meta":{"b":"3"}}`, "meta", "map[b:3]")
		step("", "DELETE", "/a", "", "", "")
		step("", "GET", "", "", "metadata", "map[b:3]")
		step("", "PUT", "", `{"metadata":{"c":"4"}}`, "metadata", "map[c:4]")
		step("", "PUT", "", `{"metadata":{}}`, "metadata", "map[]")
	}
	var pairs []string
	for i := range maxPairs {
		pairs = append(pairs, fmt.Sprintf(`"k%d":"v"`, i))
	}
	s.as(t, "alice", "", "PUT", "/volumes/"+vol+"/metadata", `{"metadata":{`+strings.Join(pairs, ",")+`}}`).want(t, 200, "metadata")
	if text := s.as(t, "alice", "", "POST", "/volumes/"+vol+"/metadata", `{"metadata":{"more":"v"}}`).fault(t, 400); !strings.Contains(text, "256") {
		t.Error(text)
	}
}

// TestMetadataUnchanged has a change of what is not any more what was read.
func TestMetadataUnchanged(t *testing.T) {
	s := newServer(t)
	vol, _, _ := s.things(t)
	path := "/volume/v3/volumes/" + vol + "/metadata"
	tag := s.send(t, "alice", "3.15", "GET", path, "").header.Get("ETag")
	if tag == "" || s.send(t, "alice", "3.14", "GET", path, "").header.Get("ETag") != "" {
		t.Fatalf("ETag %q", tag)
	}
	put := func(value string) int {
		r := httptest.NewRequestWithContext(t.Context(), "PUT", path, strings.NewReader(`{"metadata":{"a":"`+value+`"}}`))
		r.Header.Set("X-Auth-Token", "alice")
		r.Header.Set("OpenStack-API-Version", "volume 3.15")
		r.Header.Set("If-Match", tag)
		return s.do(t, r).status
	}
	if n := put("2"); n != 200 {
		t.Errorf("first change: %d", n)
	}
	if n := put("3"); n != 412 || s.volumes[vol].Metadata["a"] != "2" {
		t.Errorf("second change: %d, %v", n, s.volumes[vol].Metadata)
	}
}

// TestMetadataAtOnce has changes of different keys at the same time: none is lost.
func TestMetadataAtOnce(t *testing.T) {
	s := newServer(t)
	vol, _, _ := s.things(t)
	var g sync.WaitGroup
	for i := range 20 {
		g.Go(func() {
			s.as(t, "alice", "", "POST", "/volumes/"+vol+"/metadata", fmt.Sprintf(`{"metadata":{"k%d":"v"}}`, i))
		})
	}
	g.Wait()
	if n := len(s.volumes[vol].Metadata); n != 21 {
		t.Errorf("%d pairs, want 21", n)
	}
}

func TestQuotas(t *testing.T) {
	s := newServer(t)
	o := s.options()
	o.Project = func(r *http.Request, by identity.Caller, name string) (string, error) {
		if r.Header.Get("X-Auth-Token") != by.UserName {
			t.Errorf("%s asks with the request of another", by.UserName)
		}
		switch name {
		case "sales", projectB:
			return projectB, nil
		case "nothing":
			return "", refused{http.StatusNotFound, "Project nothing could not be found."}
		case "silent":
			return "", refused{http.StatusServiceUnavailable, "dial 10.0.0.7: refused"}
		case "broken":
			return "", errors.New("dial 10.0.0.7: refused")
		}
		return "", nil
	}
	s.handler = New(o)
	s.newBackup(t, "alice", s.newVolume(t, "alice", "db"), "one")
	limit := func(caller, at string) any {
		t.Helper()
		return s.as(t, caller, "", "GET", "/os-quota-sets/"+at, "").want(t, 200, "quota_set")["backups"]
	}
	for _, at := range []string{projectA, "science"} {
		if n := limit("alice", at); n != 10.0 {
			t.Errorf("%s: %v", at, n)
		}
	}
	usage, ok := s.as(t, "alice", "", "GET", "/os-quota-sets/science?usage=True", "").want(t, 200, "quota_set")["backups"].(map[string]any)
	if !ok || usage["limit"] != 10.0 || usage["in_use"] != 1.0 || usage["reserved"] != 0.0 {
		t.Errorf("usage %v", usage)
	}
	for _, at := range []string{projectB, "sales", "nobody"} {
		for _, tail := range []string{"", "/defaults"} {
			s.as(t, "alice", "", "GET", "/os-quota-sets/"+at+tail, "").fault(t, 403)
		}
	}
	s.as(t, "alice", "", "PUT", "/os-quota-sets/science", `{"quota_set":{"backups":99}}`).fault(t, 403)
	s.as(t, "alice", "", "DELETE", "/os-quota-sets/science", "").fault(t, 403)
	s.as(t, "alice", "", "GET", "/os-quota-class-sets/default", "").fault(t, 403)

	got := s.as(t, "root", "", "PUT", "/os-quota-sets/sales", `{"quota_set":{"tenant_id":"sales","backups":"3","volumes":-1}}`).want(t, 200, "quota_set")
	if _, there := got["id"]; there || got["backups"] != 3.0 || got["volumes"] != -1.0 {
		t.Errorf("update: %v", got)
	}
	if n := limit("bob", projectB); n != 3.0 {
		t.Errorf("bob has %v", n)
	}
	if n := s.as(t, "root", "", "GET", "/os-quota-sets/sales/defaults", "").want(t, 200, "quota_set")["backups"]; n != 10.0 {
		t.Errorf("default %v", n)
	}
	s.as(t, "root", "", "PUT", "/os-quota-sets/science?skip_validation=False", `{"quota_set":{"backups":1}}`).want(t, 200, "quota_set")
	s.as(t, "root", "", "PUT", "/os-quota-sets/science?skip_validation=True", `{"quota_set":{"backups":0}}`).want(t, 200, "quota_set")
	s.as(t, "root", "", "DELETE", "/os-quota-sets/sales", "").want(t, 200, "")
	// A project that cannot be looked up is not taken for an ID.
	for at, want := range map[string]int{"nothing": 404, "silent": 503, "broken": 503} {
		for _, got := range []reply{
			s.as(t, "root", "", "GET", "/os-quota-sets/"+at, ""),
			s.as(t, "root", "", "PUT", "/os-quota-sets/"+at, `{"quota_set":{"backups":1}}`),
			s.as(t, "root", "", "DELETE", "/os-quota-sets/"+at, ""),
			s.as(t, "root", "3.70", "GET", "/limits?project_id="+at, ""),
		} {
			if f := got.fault(t, want); strings.Contains(got.raw, "10.0.0.7") {
				t.Errorf("%s: %v", at, f)
			}
		}
	}
	if n := len(s.quotas); n != 1 {
		t.Errorf("%d projects have limits, want 1", n)
	}
	if n := limit("bob", projectB); n != 10.0 {
		t.Errorf("bob has %v", n)
	}
	s.as(t, "root", "", "GET", "/os-quota-class-sets/default", "").want(t, 200, "quota_class_set")
	if a, ok := s.as(t, "alice", "", "GET", "/limits", "").want(t, 200, "limits")["absolute"].(map[string]any); !ok || a["totalBackupsUsed"] != 1.0 {
		t.Errorf("limits: %v", a)
	}
	if a, ok := s.as(t, "root", "3.39", "GET", "/limits?project_id=sales", "").want(t, 200, "limits")["absolute"].(map[string]any); !ok || a["totalBackupsUsed"] != 0.0 {
		t.Errorf("limits: %v", a)
	}
}

func TestServices(t *testing.T) {
	s := newServer(t)
	s.as(t, "alice", "", "GET", "/os-services", "").fault(t, 403)
	for query, want := range map[string]string{
		"": "cinder-volume up enabled;cinder-backup down disabled;", "?binary=cinder-backup": "cinder-backup down disabled;",
		"?host=node1@cairn": "cinder-volume up enabled;", "?host=x": "", "?service=cinder-volume&host=node1": "",
	} {
		var got strings.Builder
		for _, o := range s.as(t, "root", "", "GET", "/os-services"+query, "").list(t, "services") {
			fmt.Fprintf(&got, "%s %s %s;", o["binary"], o["state"], o["status"])
		}
		if got.String() != want {
			t.Errorf("%q: %q, want %q", query, got.String(), want)
		}
	}
}

// TestWhatThereIsNone has calls about things of Cinder's that Cairn has not.
func TestWhatThereIsNone(t *testing.T) {
	s := newServer(t)
	for _, tt := range []struct {
		path, version, key string
		admin              bool
	}{
		{"/messages", "3.3", "messages", false},
		{"/clusters", "3.7", "clusters", true},
		{"/clusters/detail", "3.7", "clusters", true},
		{"/group_types", "3.11", "group_types", false},
		{"/groups", "3.13", "groups", false},
		{"/group_snapshots", "3.14", "group_snapshots", false},
		{"/attachments", "3.27", "attachments", false},
		{"/default-types", "3.62", "default_types", true},
		{"/qos-specs", "3.0", "qos_specs", true},
		{"/extensions", "3.0", "extensions", false},
	} {
		if n := len(s.as(t, "root", tt.version, "GET", tt.path, "").list(t, tt.key)); n != 0 {
			t.Errorf("%s: %d", tt.path, n)
		}
		if got := s.as(t, "alice", tt.version, "GET", tt.path, ""); (got.status == 403) != tt.admin {
			t.Errorf("%s as alice: %d", tt.path, got.status)
		}
		if tt.version != "3.0" {
			s.as(t, "root", "3.0", "GET", tt.path, "").fault(t, 404)
			if !strings.HasSuffix(tt.path, "detail") {
				s.as(t, "root", tt.version, "GET", tt.path+"/x", "").fault(t, 404)
			}
		}
	}
	s.as(t, "root", "3.24", "POST", "/workers/cleanup", `{}`).want(t, 202, "")
	s.as(t, "alice", "3.24", "POST", "/workers/cleanup", `{}`).fault(t, 403)
}

func TestTypes(t *testing.T) {
	s := newServer(t)
	all := s.as(t, "alice", "", "GET", "/types", "").list(t, "volume_types")
	if len(all) != 2 {
		t.Fatal(all)
	}
	secret := str(all[1], "id")
	if o := s.as(t, "alice", "", "GET", "/types/default", "").want(t, 200, "volume_type"); o["name"] != "plain" {
		t.Error(o)
	}
	s.as(t, "alice", "", "GET", "/types/plain", "").fault(t, 404)
	s.as(t, "alice", "", "GET", "/types/"+typeID+"/extra_specs", "").want(t, 200, "extra_specs")
	s.as(t, "alice", "", "GET", "/types/"+secret+"/encryption", "").fault(t, 403)
	if o := s.as(t, "root", "", "GET", "/types/"+secret+"/encryption", "").body; o["encryption_id"] != secret {
		t.Error(o)
	}
	if o := s.as(t, "root", "", "GET", "/types/"+typeID+"/encryption", "").body; len(o) != 0 {
		t.Error(o)
	}
	for _, by := range []string{secret, "secret"} {
		if o := s.as(t, "alice", "3.63", "POST", "/volumes", `{"volume":{"size":1,"volume_type":"`+by+`"}}`).want(t, 202, "volume"); o["volume_type"] != "secret" || o["volume_type_id"] != secret {
			t.Error(o)
		}
	}
	s.types = nil
	if text := s.as(t, "alice", "", "GET", "/types/default", "").fault(t, 404); text != "Default volume type can not be found." {
		t.Error(text)
	}
}
