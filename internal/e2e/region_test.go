package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/identity/keystonetest"
)

// keystonePage says how an operator sets Keystone up.
const keystonePage = "../identity/KEYSTONE.md"

// region is a cloud with a Keystone of its own: alice in the project web, bob in other.
type region struct {
	*cloud
	keystone *keystonetest.Server
	ids      map[string]string // of users and projects by name
	boss     string            // token of the administrator
	plain    []string          // settings of the agent
}

func newRegion(t *testing.T) *region {
	t.Helper()
	c := &region{keystone: keystonetest.New(t), ids: map[string]string{}}
	c.cloud = emptyCloud(t, "--keystone", c.keystone.URL)
	c.plain = slices.Clone(c.settings)
	c.as = c.environment
	c.startServe()
	c.startAgent()
	c.boss = c.token(t, "admin")
	c.followPage(t, 0, "")
	c.followPage(t, 1, "")
	for _, what := range []string{"projects?name=web", "users?name=alice"} {
		kind, name, _ := strings.Cut(what, "?name=")
		var found map[string]json.RawMessage
		var list []struct{ ID string }
		decode(t, c.ask(t, "GET", "/v3/"+what, ""), &found)
		decode(t, string(found[kind]), &list)
		if len(list) != 1 {
			t.Fatalf("Keystone has %d of %s", len(list), what)
		}
		c.ids[name] = list[0].ID
	}
	c.create(t, "project", "other", "")
	c.create(t, "user", "bob", `,"password":"bob-secret"`)
	var roles struct{ Roles []struct{ ID string } }
	decode(t, c.ask(t, "GET", "/v3/roles?name=member", ""), &roles)
	c.ask(t, "PUT", "/v3/projects/"+c.ids["other"]+"/users/"+c.ids["bob"]+"/roles/"+roles.Roles[0].ID, "")
	return c
}

// followPage runs a block of the page's commands, after others.
func (c *region) followPage(t *testing.T, block int, before string) string {
	t.Helper()
	text, err := os.ReadFile(keystonePage)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```sh\n")[1:]
	if len(blocks) != 3 {
		t.Fatalf("%s has %d blocks of commands", keystonePage, len(blocks))
	}
	script, _, _ := strings.Cut(blocks[block], "```")
	script = before + strings.ReplaceAll(script, "https://backup.example:8776", "http://"+c.addr)
	out, code := c.client("admin", "sh", "-euc", script)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s", script, code, out)
	}
	return out
}

// environment is who somebody is: "alice", "alice by ID", "alice with a wrong password";
// "nobody" says nothing of themselves.
func (c *region) environment(who string) []string {
	name, how, _ := strings.Cut(who, " ")
	project := map[string]string{"alice": "web", "bob": "other", "admin": "admin"}[name]
	password := name + "-secret"
	if name == keystonetest.Admin {
		password = keystonetest.Password
	}
	env := []string{"OS_AUTH_URL=" + c.keystone.URL + "/v3", "PASSWORD=alice-secret"}
	switch {
	case name == "nobody":
		return []string{"OS_PROJECT_DOMAIN_NAME=", "OS_USER_DOMAIN_NAME="}
	case how == "by ID":
		return append(env, "OS_USER_ID="+c.ids[name], "OS_PROJECT_ID="+c.ids[project], "OS_PASSWORD="+password)
	case how != "":
		password = "wrong"
	}
	return append(env, "OS_USERNAME="+name, "OS_PROJECT_NAME="+project, "OS_PASSWORD="+password)
}

// again starts the agent again, with more settings.
func (c *region) again(t *testing.T, more ...string) {
	t.Helper()
	c.kill(c.agent)
	c.settings = append(slices.Clone(c.plain), more...)
	c.startAgent()
	c.quiet()
}

// reply is what a request got.
type reply struct {
	status int
	header http.Header
	text   string
}

// request sends one. headers are pairs.
func request(t *testing.T, method, url, body string, headers ...string) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(headers, 2) {
		if pair[1] != "" {
			req.Header.Set(pair[0], pair[1])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// ask asks Keystone as its administrator, and has to succeed.
func (c *region) ask(t *testing.T, method, path, body string, headers ...string) string {
	t.Helper()
	got := request(t, method, c.keystone.URL+path, body, append(headers, "X-Auth-Token", c.boss)...)
	if got.status/100 != 2 {
		t.Fatalf("%s %s: %+v", method, path, got)
	}
	return got.text
}

// create makes a project or a user.
func (c *region) create(t *testing.T, kind, name, more string) {
	t.Helper()
	var made map[string]struct{ ID string }
	decode(t, c.ask(t, "POST", "/v3/"+kind+"s", `{"`+kind+`":{"name":"`+name+`","domain_id":"default"`+more+`}}`), &made)
	c.ids[name] = made[kind].ID
}

// token logs somebody in to their project.
func (c *region) token(t *testing.T, who string) string {
	t.Helper()
	env := map[string]string{}
	for _, line := range c.environment(who) {
		k, v, _ := strings.Cut(line, "=")
		env[k] = v
	}
	return c.login(t, env, `{"project":{"name":"`+env["OS_PROJECT_NAME"]+`","domain":{"id":"default"}}}`)
}

// unscoped logs somebody in to no project.
func (c *region) unscoped(t *testing.T, who string) string {
	t.Helper()
	return c.login(t, map[string]string{"OS_USERNAME": who, "OS_PASSWORD": who + "-secret"}, `"unscoped"`)
}

func (c *region) login(t *testing.T, env map[string]string, scope string) string {
	t.Helper()
	got := request(t, "POST", c.keystone.URL+"/v3/auth/tokens", `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"`+
		env["OS_USERNAME"]+`","domain":{"id":"default"},"password":"`+env["OS_PASSWORD"]+`"}}},"scope":`+scope+`}}`)
	if got.status != http.StatusCreated {
		t.Fatalf("log in as %s: %+v", env["OS_USERNAME"], got)
	}
	return got.header.Get("X-Subject-Token")
}

// send sends a request to the agent with a token.
func (c *region) send(t *testing.T, token, method, path, body string) reply {
	t.Helper()
	return request(t, method, "http://"+c.addr+path, body, "X-Auth-Token", token, "OpenStack-API-Version", "volume 3.70")
}

// call is send to a path below the API's version.
func (c *region) call(t *testing.T, token, method, path, body string) reply {
	t.Helper()
	return c.send(t, token, method, "/volume/v3/"+path, body)
}

// answers asks for the backups of a token's project.
func (c *region) answers(t *testing.T, token string, want int) {
	t.Helper()
	if got := c.call(t, token, "GET", "backups", ""); got.status != want {
		t.Fatalf("%+v, want %d", got, want)
	}
}

// until401 waits until a token is refused, which has to be soon.
func (c *region) until401(t *testing.T, token string) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		switch got := c.call(t, token, "GET", "backups", ""); {
		case got.status == http.StatusUnauthorized:
			return
		case got.status != http.StatusOK:
			t.Fatalf("%+v", got)
		case time.Now().After(deadline):
			t.Fatal("the token is still taken")
		}
		<-time.After(100 * time.Millisecond)
	}
}

// asked is how often the agent has asked Keystone about a token: clients do not.
func (c *region) asked(t *testing.T) int {
	t.Helper()
	// It answers one request after the other: those before this one are recorded.
	c.ask(t, "GET", "/v3", "")
	return c.keystone.Requests(t, "GET /v3/auth/tokens?nocatalog")
}

// rowHas looks for a row of a client's table.
func rowHas(table string, cells ...string) bool {
	return slices.ContainsFunc(strings.Split(table, "\n"), func(line string) bool {
		var got []string
		for cell := range strings.SplitSeq(strings.Trim(line, "| "), "|") {
			got = append(got, strings.TrimSpace(cell))
		}
		return slices.Equal(got, cells)
	})
}

func (c *region) readFile(elem ...string) string {
	c.t.Helper()
	b, err := os.ReadFile(c.path(elem...))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}
