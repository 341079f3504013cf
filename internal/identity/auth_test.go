package identity

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// The shape is Keystone's, key by key.
func TestTokenShape(t *testing.T) {
	r := newRig(t)
	a := r.do(t, "POST", tokens, auth("demo", secret, inProject("demo")))
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.text)
	}
	keys := func(path string) string {
		o, _ := a.at(path).(map[string]any)
		var out []string
		for k := range o {
			out = append(out, k)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for path, want := range map[string]string{
		"token":         "audit_ids catalog expires_at is_domain issued_at methods project roles user",
		"token/user":    "domain id name password_expires_at",
		"token/project": "domain id name",
	} {
		if got := keys(path); got != want {
			t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
	for path, want := range map[string]any{
		"token/user/id": r.ids["user demo"], "token/user/name": "demo", "token/user/domain/id": "default", "token/user/domain/name": "Default",
		"token/user/password_expires_at": nil, "token/project/id": r.ids["project demo"], "token/project/domain/id": "default",
		"token/is_domain": false, "token/issued_at": "2026-01-02T03:04:05.000000Z", "token/expires_at": "2026-01-02T04:04:05.000000Z",
	} {
		if got := a.at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if ids, _ := a.at("token/audit_ids").([]any); len(ids) != 1 || len(ids[0].(string)) != 22 {
		t.Errorf("audit_ids %v", ids)
	}
	urls := map[any]any{}
	catalog, _ := a.at("token/catalog").([]any)
	for _, s := range catalog {
		service := s.(map[string]any)
		e := service["endpoints"].([]any)[0].(map[string]any)
		urls[service["type"]] = e["url"]
		if e["interface"] != "public" || e["region"] != "RegionOne" || e["region_id"] != "RegionOne" || e["id"] == "" || service["name"] == "" || service["id"] == "" {
			t.Errorf("endpoint %v of %v", e, service)
		}
	}
	if len(urls) != 3 || urls["identity"] != r.url+"/identity" || urls["image"] != r.url+"/image" || urls["volumev3"] != r.url+"/volume/v3/"+r.ids["project demo"] {
		t.Errorf("catalog %v", urls)
	}
	a = r.do(t, "POST", tokens, auth("demo", secret, `"unscoped"`))
	if got := keys("token"); got != "audit_ids expires_at issued_at methods user" {
		t.Errorf("an unscoped token has %s", got)
	}
	if a = r.do(t, "POST", tokens+"?nocatalog", auth("demo", secret, "")); a.at("token/catalog") != nil || a.at("token/roles") == nil {
		t.Errorf("%s", a.text)
	}
}

func TestLogIn(t *testing.T) {
	r := newRig(t)
	demo, other, hidden := r.ids["project demo"], r.ids["project other"], r.ids["project hidden"]
	by := func(user, scope string) string {
		if scope != "" {
			scope = `,"scope":` + scope
		}
		return `{"auth":{"identity":{"methods":["password"],"password":{"user":{` + user + `}}}` + scope + `}}`
	}
	const pw = `,"password":"` + secret + `"`
	id := `"id":"` + r.ids["user demo"] + `"`
	for _, c := range []struct {
		name, body string
		status     int
		project    any    // of the token
		text       string // in the answer
	}{
		{"by name and domain ID", auth("demo", secret, ""), 201, demo, ""},
		{"by name and domain name", by(`"name":"demo","domain":{"name":"Default"}`+pw, ""), 201, demo, ""},
		{"no domain given", by(`"name":"demo"`+pw, ""), 201, demo, ""},
		{"by ID", by(id+pw, ""), 201, demo, ""},
		{"project by ID", by(id+pw, `{"project":{"id":"`+other+`"}}`), 201, other, ""},
		{"project by name", by(id+pw, `{"project":{"name":"other","domain":{"id":"default"}}}`), 201, other, ""},
		{"project by name, no domain", by(id+pw, `{"project":{"name":"other"}}`), 201, other, ""},
		{"unscoped", by(id+pw, `"unscoped"`), 201, nil, ""},
		{"unscoped as an object", by(id+pw, `{"unscoped":{}}`), 201, nil, ""},
		{"no default project", auth("loner", secret, ""), 201, nil, ""},
		{"administrators are everywhere", auth("admin", secret, inProject("hidden")), 201, hidden, ""},
		{"keys that nobody knows", strings.Replace(auth("demo", secret, ""), `{"auth":`, `{"x":1,"auth":`, 1), 201, demo, ""},

		{"wrong password", auth("demo", "wrong", ""), 401, nil, "The request you have made requires authentication."},
		{"no such user", auth("nobody", secret, ""), 401, nil, "requires authentication"},
		{"no such ID", by(`"id":"x"`+pw, ""), 401, nil, "requires authentication"},
		{"another domain", by(`"name":"demo","domain":{"id":"x"}`+pw, ""), 401, nil, ""},
		{"another domain by name", by(`"name":"demo","domain":{"name":"default"}`+pw, ""), 401, nil, ""},
		{"no password", by(`"name":"demo"`, ""), 401, nil, ""},
		{"long password", by(`"name":"demo","password":"`+strings.Repeat("x", MaxPassword+1)+`"`, ""), 401, nil, ""},
		{"no role there", auth("demo", secret, inProject("hidden")), 401, nil, ""},
		{"no such project", auth("demo", secret, inProject("x")), 401, nil, ""},
		{"project of another domain", by(id+pw, `{"project":{"name":"demo","domain":{"id":"x"}}}`), 401, nil, ""},
		{"domain scope", by(id+pw, `{"domain":{"id":"default"}}`), 401, nil, ""},
		{"system scope", by(id+pw, `{"system":{"all":true}}`), 401, nil, ""},
		{"no methods", `{"auth":{"identity":{"methods":[]}}}`, 401, nil, ""},
		{"a method that is not there", `{"auth":{"identity":{"methods":["totp"],"totp":{}}}}`, 401, nil, "unsupported method"},
		{"token that is none", `{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}}}}`, 404, nil, "Failed to validate token"},
		{"empty token", `{"auth":{"identity":{"methods":["token"],"token":{"id":""}}}}`, 404, nil, "No token in the request"},

		{"empty", ``, 400, nil, "Expecting to find auth in request body."},
		{"nothing", `{}`, 400, nil, "Expecting to find auth in request body."},
		{"null", `null`, 400, nil, "valid JSON"},
		{"list", `[]`, 400, nil, "valid JSON"},
		{"cut", `{"auth":`, 400, nil, "valid JSON"},
		{"two", `{"auth":{}}{}`, 400, nil, "valid JSON"},
		{"bad UTF-8", auth("demo", "\xff", ""), 400, nil, "valid JSON"},
		{"deep", strings.Repeat(`[`, 30000), 400, nil, "valid JSON"},
		{"auth is no object", `{"auth":7}`, 400, nil, "'auth': a number is not of type 'object'"},
		{"no identity", `{"auth":{}}`, 400, nil, "'identity' is a required property"},
		{"no methods at all", `{"auth":{"identity":{}}}`, 400, nil, "'methods' is a required property"},
		{"methods are no list", `{"auth":{"identity":{"methods":"password"}}}`, 400, nil, "'identity/methods': a string is not of type 'array'"},
		{"a method is a number", `{"auth":{"identity":{"methods":[1]}}}`, 400, nil, "'identity/methods/0': a number is not of type 'string'"},
		{"password without itself", `{"auth":{"identity":{"methods":["password"]}}}`, 400, nil, "Expecting to find password in identity."},
		{"password without user", `{"auth":{"identity":{"methods":["password"],"password":{}}}}`, 400, nil, "Expecting to find user"},
		{"one of two methods", strings.Replace(auth("demo", secret, ""), `["password"]`, `["password","token"]`, 1), 400, nil, "Expecting to find token in identity."},
		{"token without ID", `{"auth":{"identity":{"methods":["token"],"token":{}}}}`, 400, nil, "'id' is a required property"},
		{"name is a number", by(`"name":7`+pw, ""), 400, nil, "'identity/password/user/name': a number is not of type 'string'"},
		{"neither name nor ID", by(`"x":1`+pw, ""), 400, nil, "field identity/password/user: id or name must be present."},
		{"empty domain", by(`"name":"demo","domain":{}`+pw, ""), 400, nil, "user/domain: id or name must be present."},
		{"domain is null", by(`"name":"demo","domain":null`+pw, ""), 400, nil, "null is not of type 'object'"},
		{"empty project", by(id+pw, `{"project":{}}`), 400, nil, "field scope/project: id or name must be present."},
		{"scope is a number", by(id+pw, `7`), 400, nil, "'scope': a number"},
		{"empty scope", by(id+pw, `{}`), 400, nil, "in scope"},
		{"two scopes", by(id+pw, `{"project":{"name":"demo"},"domain":{"id":"default"}}`), 400, nil, "in scope"},
		{"password is a number", by(`"name":"demo","password":4711`, ""), 400, nil, "a number is not of type 'string'"},
		{"large", `{"auth":"` + strings.Repeat("x", maxBody) + `"}`, 413, nil, "too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.limit = newLimiter()
			a := r.do(t, "POST", tokens, c.body)
			if a.status != c.status || !strings.Contains(a.text, c.text) {
				t.Fatalf("%d %s, want %d with %q", a.status, a.text, c.status, c.text)
			}
			if strings.Contains(a.text, secret) || strings.Contains(a.text, "4711") {
				t.Fatalf("the answer has the password: %s", a.text)
			}
			if c.status != 201 {
				if a.at("error/code") != float64(c.status) || a.at("error/title") != http.StatusText(c.status) || a.header.Get("X-Subject-Token") != "" {
					t.Fatalf("%v %s", a.header, a.text)
				}
				return
			}
			if a.at("token/project/id") != c.project || len(a.header.Get("X-Subject-Token")) != tokenText {
				t.Fatalf("%s, want project %v", a.text, c.project)
			}
		})
	}
	if a := r.do(t, "POST", tokens, auth("demo", secret, ""), "Content-Type", "text/plain"); a.status != 400 || !strings.Contains(a.text, "application/json in Content-Type") {
		t.Errorf("%d %s", a.status, a.text)
	}
	if a := r.do(t, "POST", tokens, auth("demo", secret, ""), "Content-Type", "application/json; charset=utf-8"); a.status != 201 {
		t.Errorf("%d %s", a.status, a.text)
	}
}

// A token gets tokens for other projects, which end when it does.
func TestTokenByToken(t *testing.T) {
	r := newRig(t)
	first := r.token(t, "demo", `"unscoped"`)
	ask := func(token, scope string) *answer {
		return r.do(t, "POST", tokens, `{"auth":{"identity":{"methods":["token"],"token":{"id":"`+token+`"}},"scope":`+scope+`}}`)
	}
	r.clock.turn(40 * time.Minute)
	a := ask(first, inProject("other"))
	if a.status != 201 || a.at("token/project/id") != r.ids["project other"] || a.at("token/expires_at") != "2026-01-02T04:04:05.000000Z" {
		t.Fatalf("%d %s", a.status, a.text)
	}
	if !strings.Contains(a.text, `"methods":["token","password"]`) {
		t.Errorf("%s", a.text)
	}
	second := ask(a.header.Get("X-Subject-Token"), inProject("demo"))
	one, _ := a.at("token/audit_ids").([]any)
	two, _ := second.at("token/audit_ids").([]any)
	if len(one) != 2 || len(two) != 2 || one[1] != two[1] || one[0] == two[0] {
		t.Errorf("audit IDs %v and %v", one, two)
	}
	if a := ask(first, inProject("hidden")); a.status != 401 {
		t.Errorf("%d %s", a.status, a.text)
	}
	both := strings.Replace(auth("admin", secret, ""), `["password"]`, `["token","password"],"token":{"id":"`+first+`"}`, 1)
	if a := r.do(t, "POST", tokens, both); a.status != 401 {
		t.Errorf("two users at once: %d %s", a.status, a.text)
	}
	r.clock.turn(20 * time.Minute)
	if a := ask(first, inProject("demo")); a.status != 404 {
		t.Errorf("an expired token: %d %s", a.status, a.text)
	}
}
