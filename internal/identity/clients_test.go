package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// tool returns the path of a program that a test runs many times.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts many programs: not with -short")
	}
	return needs.Tool(t, name, debian)
}

// said is what a program said, and how it ended.
type said struct {
	code     int
	out, err string
}

// client runs one of OpenStack's clients with nothing of the environment but env.
func client(t *testing.T, env []string, name string, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=" + cmd.Dir, "LC_ALL=C.UTF-8", "PYTHONWARNINGS=ignore"}, env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	s := said{out: out.String(), err: stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		s.code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, s.err)
	}
	return s
}

// succeeds runs a client that must succeed, and decodes its JSON into v if that is not nil.
func succeeds(t *testing.T, env []string, v any, name string, args ...string) string {
	t.Helper()
	s := client(t, env, name, args...)
	if s.code != 0 {
		t.Fatalf("%s %q: exit code %d\n%s%s", name, args, s.code, s.out, s.err)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(s.out), v); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, s.out)
		}
	}
	return s.out
}

// as is the environment of a user who has sourced their openrc file.
func (r *rig) as(user, password, project string) []string {
	return []string{
		"OS_AUTH_URL=" + r.url + "/identity/v3", "OS_IDENTITY_API_VERSION=3", "OS_REGION_NAME=RegionOne",
		"OS_USERNAME=" + user, "OS_PASSWORD=" + password, "OS_PROJECT_NAME=" + project,
		"OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default",
	}
}

// realTime makes the rig live now, as clients look at the end of a token.
func (r *rig) realTime(t *testing.T) {
	t.Helper()
	s, err := New(Options{File: r.name})
	must(t, err)
	r.serve(t, s)
}

func TestOpenStackClient(t *testing.T) {
	openstack := tool(t, "openstack", "python3-openstackclient")
	r := newRig(t)
	r.realTime(t)
	admin, demo := r.as("admin", secret, "admin"), r.as("demo", secret, "demo")

	var tok struct {
		ID      string `json:"id"`
		Project string `json:"project_id"`
		User    string `json:"user_id"`
		Expires string `json:"expires"`
	}
	succeeds(t, demo, &tok, openstack, "token", "issue", "-f", "json")
	if tok.Project != r.ids["project demo"] || tok.User != r.ids["user demo"] || tok.Expires == "" {
		t.Errorf("%+v", tok)
	}
	if _, err := r.Authenticate(with("X-Auth-Token", tok.ID)); err != nil {
		t.Error(err)
	}

	type row struct {
		ID   string
		Name string
	}
	var rows []row
	succeeds(t, admin, &rows, openstack, "project", "list", "-f", "json")
	if len(rows) != 4 {
		t.Errorf("%+v", rows)
	}
	// Without the right to list all, it asks for one's own.
	succeeds(t, demo, &rows, openstack, "project", "list", "-f", "json")
	if len(rows) != 2 || rows[0].ID != r.ids["project demo"] {
		t.Errorf("%+v", rows)
	}

	var project map[string]any
	for _, ref := range []string{"other", r.ids["project other"]} {
		succeeds(t, admin, &project, openstack, "project", "show", ref, "-f", "json")
		if project["id"] != r.ids["project other"] || project["description"] != "the project other" || project["domain_id"] != "default" || project["enabled"] != true {
			t.Errorf("%s: %v", ref, project)
		}
	}
	succeeds(t, demo, &project, openstack, "project", "show", r.ids["project demo"], "-f", "json")
	if project["name"] != "demo" {
		t.Errorf("%v", project)
	}
	if s := client(t, admin, openstack, "project", "show", "nix"); s.code != 1 || !strings.Contains(s.err, "No project with a name or ID of 'nix' exists.") {
		t.Errorf("%+v", s)
	}
	succeeds(t, admin, &rows, openstack, "user", "list", "-f", "json")
	if len(rows) != 3 {
		t.Errorf("%+v", rows)
	}

	var catalog []struct {
		Name, Type string
		Endpoints  []map[string]any
	}
	succeeds(t, demo, &catalog, openstack, "catalog", "list", "-f", "json")
	urls := map[string]any{}
	for _, c := range catalog {
		urls[c.Type] = c.Endpoints[0]["url"]
	}
	if len(urls) != 3 || urls["volumev3"] != r.url+"/volume/v3/"+r.ids["project demo"] || urls["image"] != r.url+"/image" || urls["identity"] != r.url+"/identity" {
		t.Errorf("%v", urls)
	}

	succeeds(t, demo, nil, openstack, "token", "revoke", tok.ID)
	if _, err := r.Authenticate(with("X-Auth-Token", tok.ID)); !errors.Is(err, ErrUnauthorized) {
		t.Error(err)
	}
}

// Refusals arrive as exit code 1 and Keystone's words.
func TestOpenStackClientRefusals(t *testing.T) {
	openstack := tool(t, "openstack", "python3-openstackclient")
	r := newRig(t)
	r.realTime(t)
	for _, c := range []struct {
		env  []string
		want string
	}{
		{r.as("demo", "wrong", "demo"), "The request you have made requires authentication. (HTTP 401) (Request-ID: req-"},
		{r.as("nobody", secret, "demo"), "The request you have made requires authentication. (HTTP 401)"},
		{r.as("demo", secret, "hidden"), "The request you have made requires authentication. (HTTP 401)"},
	} {
		if s := client(t, c.env, openstack, "token", "issue"); s.code != 1 || !strings.Contains(s.err, c.want) || s.out != "" {
			t.Errorf("%+v, want %s", s, c.want)
		}
	}
	for range limitFree + 10 {
		r.limit.failed("demo", netip.MustParseAddr("127.0.0.1"), time.Now())
	}
	if s := client(t, r.as("demo", secret, "demo"), openstack, "token", "issue"); s.code != 1 || !strings.Contains(s.err, "Too many wrong passwords: try again in") {
		t.Errorf("%+v", s)
	}
}
