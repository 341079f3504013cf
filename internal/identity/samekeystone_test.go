package identity

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// shape is what kind of thing a JSON value is, down to the last key.
func shape(v any) string {
	switch x := v.(type) {
	case map[string]any:
		var out []string
		for _, k := range slices.Sorted(maps.Keys(x)) {
			out = append(out, k+":"+shape(x[k]))
		}
		return "{" + strings.Join(out, " ") + "}"
	case []any:
		var out []string
		for _, e := range x {
			if s := shape(e); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
		return "[" + strings.Join(out, " ") + "]"
	default:
		return fmt.Sprintf("%T", v)
	}
}

// peer is one of two services that are asked the same.
type peer struct {
	*rig
	root   string
	tokens map[string]string
}

// people gives a real Keystone what fill gives ours, and returns the IDs.
func (r *rig) people(t *testing.T) {
	t.Helper()
	admin := r.logInTo(t, "admin", inProject("admin"))
	r.ids = map[string]string{}
	created := func(kind, name, more string) string {
		a := r.do(t, "POST", "/v3/"+kind+"s", `{"`+kind+`":{"name":"`+name+`","domain_id":"default"`+more+`}}`, "X-Auth-Token", admin)
		id, ok := a.at(kind + "/id").(string)
		if !ok {
			t.Fatalf("%s %s: %d %s", kind, name, a.status, a.text)
		}
		r.ids[kind+" "+name] = id
		return id
	}
	demo, other := created("project", "demo", ""), created("project", "other", "")
	created("project", "hidden", "")
	u := created("user", "demo", `,"password":"`+secret+`","default_project_id":"`+demo+`"`)
	created("user", "loner", `,"password":"`+secret+`"`)
	roles, _ := r.do(t, "GET", "/v3/roles", "", "X-Auth-Token", admin).at("roles").([]any)
	for _, role := range roles {
		o, _ := role.(map[string]any)
		in := map[any]string{"member": demo, "reader": other}[o["name"]]
		if id, ok := o["id"].(string); ok && in != "" {
			if a := r.do(t, "PUT", "/v3/projects/"+in+"/users/"+u+"/roles/"+id, "", "X-Auth-Token", admin); a.status != http.StatusNoContent {
				t.Fatalf("%d %s", a.status, a.text)
			}
		}
	}
	me := r.do(t, "GET", "/v3/users?name=admin", "", "X-Auth-Token", admin)
	list, _ := me.at("users").([]any)
	r.ids["user admin"], _ = list[0].(map[string]any)["id"].(string)
}

// The service answers what Keystone answers: the same codes, headers and keys.
func sameAsKeystone(t *testing.T, theirs *rig) {
	t.Helper()
	theirs.people(t)
	ours := newRig(t)
	ours.realTime(t)
	// The other one's administrator has no default project.
	ours.edit(t, func(d *Directory) error { d.userByName("admin").DefaultProject = ""; return nil })
	peers := []*peer{{rig: theirs}, {rig: ours, root: "/identity"}}
	for _, p := range peers {
		p.tokens = map[string]string{"": "", "wrong": "x"}
		for _, who := range []string{"admin", "demo", "loner"} {
			scope := ""
			if who == "admin" {
				scope = inProject("admin")
			}
			for name, s := range map[string]string{who: scope, who + " unscoped": `"unscoped"`} {
				a := p.do(t, "POST", p.root+"/v3/auth/tokens", auth(who, secret, s))
				if p.tokens[name] = a.header.Get("X-Subject-Token"); a.status != http.StatusCreated {
					t.Fatalf("%s: %d %s", name, a.status, a.text)
				}
			}
		}
	}
	for _, c := range sameRequests() {
		t.Run(c.name(), func(t *testing.T) {
			var said []string
			for _, p := range peers {
				said = append(said, p.ask(t, c))
			}
			if said[0] != said[1] {
				t.Errorf("Keystone answers\n%s\nand this service\n%s", said[0], said[1])
			}
		})
	}
}

// request is one that both are sent. "{demo}" in the path, the body or about stands for
// the ID of that project or user, "<admin>" for that token.
type request struct {
	method, path, who, about, body string
}

func (r request) name() string {
	return strings.ReplaceAll(strings.TrimSpace(r.method+" "+r.path+" "+r.who+" "+r.about+" "+r.body), "/", "|")
}

// ask sends a request and returns what counts in the answer.
func (p *peer) ask(t *testing.T, c request) string {
	t.Helper()
	fill := func(s string) string {
		for name, id := range p.ids {
			s = strings.ReplaceAll(s, "{"+name+"}", id)
		}
		for name, token := range p.tokens {
			s = strings.ReplaceAll(s, "<"+name+">", token)
		}
		return s
	}
	headers := []string{"X-Auth-Token", p.tokens[c.who]}
	if c.about != "" {
		headers = append(headers, "X-Subject-Token", fill(c.about))
	}
	a := p.do(t, c.method, p.root+fill(c.path), fill(c.body), headers...)
	var catalog any
	if token, ok := a.body["token"].(map[string]any); ok {
		if catalog, ok = token["catalog"]; ok {
			token["catalog"] = "compared by itself"
		}
	}
	message, _ := a.at("error/message").(string)
	for _, id := range p.ids {
		message = strings.ReplaceAll(message, id, "ID")
	}
	if strings.Contains(message, "Fernet") { // a form of token that is not ours
		message = "Failed to validate token"
	}
	return strings.ReplaceAll(fmt.Sprintf("%d %v\nbody %s\ncatalog %s\nVary %s, type %s, subject %v, challenge %v\n%s",
		a.status, a.at("error/title"), shape(any(a.body)), shape(catalog), a.header.Get("Vary"), a.header.Get("Content-Type"),
		a.header.Get("X-Subject-Token") != "", strings.TrimPrefix(a.header.Get("WWW-Authenticate"), `Keystone uri="`+p.url+p.root), message), p.url+p.root, "URL")
}
