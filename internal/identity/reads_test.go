package identity

import (
	"net/http"
	"strings"
	"testing"
)

func TestReads(t *testing.T) {
	r := newRig(t)
	tok := map[string]string{
		"admin":    r.token(t, "admin", ""),
		"demo":     r.token(t, "demo", ""),
		"unscoped": r.token(t, "demo", `"unscoped"`),
		"loner":    r.token(t, "loner", ""),
		"adminun":  r.token(t, "admin", `"unscoped"`),
		"nobody":   "x",
	}
	demo, other := r.ids["project demo"], r.ids["project other"]
	me, admin := r.ids["user demo"], r.ids["user admin"]
	for _, c := range []struct {
		who, path string
		status    int
		want      string // in the answer
	}{
		{"", "/projects", 401, "requires authentication"},
		{"nobody", "/projects", 401, ""},
		{"admin", "/projects", 200, "admin demo hidden other"},
		{"admin", "/projects?name=demo", 200, "demo"},
		{"admin", "/projects?name=x", 200, ""},
		{"admin", "/projects?domain_id=default&enabled=true&is_domain=false&x=y", 200, "admin demo hidden other"},
		{"admin", "/projects?domain_id=x", 200, ""},
		{"admin", "/projects?enabled=False", 200, ""},
		{"admin", "/projects?is_domain=1", 200, ""},
		{"demo", "/projects", 403, "not authorized to perform the requested action: identity:list_projects."},
		{"unscoped", "/projects", 403, ""},
		{"adminun", "/projects", 403, ""},
		{"admin", "/projects/" + other, 200, "other"},
		{"admin", "/projects/x", 404, "Could not find project: x."},
		{"demo", "/projects/" + demo, 200, "demo"},
		{"demo", "/projects/" + other, 403, "identity:get_project"},
		{"demo", "/projects/x", 403, ""},
		{"admin", "/users", 200, "admin demo loner"},
		{"admin", "/users?name=demo", 200, "demo"},
		{"demo", "/users", 403, "identity:list_users"},
		{"demo", "/users/" + me, 200, "demo"},
		{"unscoped", "/users/" + me, 200, "demo"},
		{"demo", "/users/" + admin, 403, "identity:get_user"},
		{"demo", "/users/x", 403, ""},
		{"admin", "/users/" + me, 200, "demo"},
		{"admin", "/users/x", 404, "Could not find user: x."},
		{"demo", "/users/" + me + "/projects", 200, "demo other"},
		{"demo", "/users/" + admin + "/projects", 403, ""},
		{"admin", "/users/" + me + "/projects?name=other", 200, "other"},
		{"unscoped", "/auth/projects", 200, "demo other"},
		{"admin", "/auth/projects", 200, "admin demo hidden other"},
		{"loner", "/auth/projects", 200, ""},
		{"", "/auth/projects", 401, ""},
		{"demo", "/auth/catalog", 200, "identity"},
		{"unscoped", "/auth/catalog", 403, "not authorized"},
		{"demo", "/domains/default", 200, "Default"},
		{"demo", "/domains/x", 403, ""},
		{"admin", "/domains/x", 404, "Could not find domain: x."},
		{"unscoped", "/domains/default", 403, ""},
		{"admin", "/domains", 200, "Default"},
		{"admin", "/domains?name=x", 200, ""},
		{"demo", "/domains", 403, ""},
	} {
		t.Run(c.who+c.path, func(t *testing.T) {
			var h []string
			if c.who != "" {
				h = []string{"X-Auth-Token", tok[c.who]}
			}
			a := r.do(t, "GET", "/identity/v3"+c.path, "", h...)
			if a.status != c.status {
				t.Fatalf("%d %s, want %d", a.status, a.text, c.status)
			}
			if a.status != 200 {
				if !strings.Contains(a.text, c.want) || a.at("error/title") != http.StatusText(a.status) {
					t.Fatalf("%s, want %q", a.text, c.want)
				}
				return
			}
			if got := names(a); got != c.want && c.path != "/auth/catalog" {
				t.Fatalf("%s, want %s", got, c.want)
			}
			if !strings.Contains(a.text, `"self":"`+r.url+"/identity/v3"+strings.ReplaceAll(c.path, "&", `\u0026`)+`"`) {
				t.Fatalf("no link to itself: %s", a.text)
			}
			head := r.do(t, "HEAD", "/identity/v3"+c.path, "", h...)
			if head.status != 200 || head.text != "" || head.header.Get("Content-Length") != a.header.Get("Content-Length") {
				t.Fatalf("HEAD: %d %v", head.status, head.header)
			}
		})
	}
}

// names are those of the things in an answer.
func names(a *answer) string {
	var out []string
	for _, key := range []string{"project", "user", "domain"} {
		if one, ok := a.body[key].(map[string]any); ok {
			out = append(out, one["name"].(string))
		}
		list, _ := a.body[key+"s"].([]any)
		for _, v := range list {
			out = append(out, v.(map[string]any)["name"].(string))
		}
	}
	return strings.Join(out, " ")
}

func TestObjects(t *testing.T) {
	r := newRig(t)
	tok := r.token(t, "demo", "")
	id := r.ids["project demo"]
	for path, want := range map[string]string{
		"/projects/" + id:              `{"project":{"description":"the project demo","domain_id":"default","enabled":true,"id":"` + id + `","is_domain":false,"links":{"self":"` + r.url + `/identity/v3/projects/` + id + `"},"name":"demo","options":{},"parent_id":"default","tags":[]}}`,
		"/users/" + r.ids["user demo"]: `{"user":{"default_project_id":"` + id + `","domain_id":"default","enabled":true,"id":"` + r.ids["user demo"] + `","links":{"self":"` + r.url + `/identity/v3/users/` + r.ids["user demo"] + `"},"name":"demo","options":{},"password_expires_at":null}}`,
		"/domains/default":             `{"domain":{"description":"The default domain","enabled":true,"id":"default","links":{"self":"` + r.url + `/identity/v3/domains/default"},"name":"Default","options":{},"tags":[]}}`,
	} {
		if a := r.do(t, "GET", "/identity/v3"+path, "", "X-Auth-Token", tok); a.text != want {
			t.Errorf("%s:\n%s\nwant\n%s", path, a.text, want)
		}
	}
}
