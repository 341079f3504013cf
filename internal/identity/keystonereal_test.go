package identity

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

const keystoneConf = `[DEFAULT]
log_file = DIR/keystone.log
[database]
connection = sqlite:///DIR/keystone.db
[fernet_tokens]
key_repository = DIR/keys
[fernet_receipts]
key_repository = DIR/keys
[credential]
key_repository = DIR/keys
[identity]
password_hash_rounds = 4
`

// realKeystone starts Debian's Keystone on SQLite, in a folder of its own, and returns
// a rig that talks to it. Its administrator is "admin" with the password "secret".
func realKeystone(t *testing.T) *rig {
	t.Helper()
	manage, serve := tool(t, "keystone-manage", "python3-keystone"), tool(t, "keystone-wsgi-public", "python3-keystone")
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "keys"), 0o700))
	conf := filepath.Join(dir, "keystone.conf")
	must(t, os.WriteFile(conf, []byte(strings.ReplaceAll(keystoneConf, "DIR", dir)), 0o600))
	me, err := user.Current()
	must(t, err)
	group, err := user.LookupGroupId(me.Gid)
	must(t, err)
	for _, args := range [][]string{
		{"db_sync"},
		{"fernet_setup", "--keystone-user", me.Username, "--keystone-group", group.Name},
		{"bootstrap", "--bootstrap-password", secret, "--bootstrap-public-url", "http://127.0.0.1:1/v3", "--bootstrap-region-id", "RegionOne"},
	} {
		succeeds(t, nil, nil, manage, append([]string{"--config-file", conf}, args...)...)
	}
	neverLocked(t, filepath.Join(dir, "keystone.db"))
	port := freePort(t)
	// The test's own context has ended when the server is.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, serve, "--host", "127.0.0.1", "--port", strconv.Itoa(port), "--", "--config-file", conf)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("%s", out.Bytes())
		}
	})
	r := &rig{url: "http://127.0.0.1:" + strconv.Itoa(port)}
	deadline := time.After(2 * time.Minute)
	for {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err == nil {
			must(t, conn.Close())
			return r
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ended:
			t.Fatal("Keystone does not start")
		case <-deadline:
			t.Fatal("Keystone does not answer")
		}
	}
}

// neverLocked lets Keystone write to its SQLite file while a reader of its own has not
// let go: otherwise it now and then answers with 500.
func neverLocked(t *testing.T, name string) {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	must(t, err)
	defer db.Close()
	var mode string
	must(t, db.QueryRowContext(t.Context(), "PRAGMA journal_mode=WAL").Scan(&mode))
	if mode != "wal" {
		t.Fatal(mode)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(l.Addr())
	}
	return addr.Port
}

// logInTo gets a token of a real Keystone.
func (r *rig) logInTo(t *testing.T, name, scope string) string {
	t.Helper()
	a := r.do(t, "POST", "/v3/auth/tokens", auth(name, secret, scope))
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.text)
	}
	return a.header.Get("X-Subject-Token")
}

func TestRealKeystone(t *testing.T) {
	r := realKeystone(t)
	t.Run("authenticator", func(t *testing.T) { askKeystone(t, r) })
	t.Run("same answers", func(t *testing.T) { sameAsKeystone(t, r) })
}

// askKeystone is the authenticator against the real one.
func askKeystone(t *testing.T, r *rig) {
	t.Helper()
	k, err := NewKeystone(r.url, KeystoneOptions{})
	must(t, err)
	ask := func(token string) (Caller, error) { return k.Authenticate(with("X-Auth-Token", token)) }

	admin := r.logInTo(t, "admin", inProject("admin"))
	c, err := ask(admin)
	must(t, err)
	if c.UserName != "admin" || c.ProjectName != "admin" || !c.Admin || len(c.UserID) != 32 || len(c.ProjectID) != 32 || time.Until(c.ExpiresAt) < 30*time.Minute {
		t.Fatalf("%+v", c)
	}

	// A member of a project, who may ask about nobody's token but their own.
	made := func(path, body, id string) string {
		t.Helper()
		a := r.do(t, "POST", "/v3"+path, body, "X-Auth-Token", admin)
		got, ok := a.at(id).(string)
		if !ok {
			t.Fatalf("%s: %d %s", path, a.status, a.text)
		}
		return got
	}
	project := made("/projects", `{"project":{"name":"team","domain_id":"default"}}`, "project/id")
	alice := made("/users", `{"user":{"name":"alice","domain_id":"default","password":"`+secret+`"}}`, "user/id")
	roles, _ := r.do(t, "GET", "/v3/roles?name=member", "", "X-Auth-Token", admin).at("roles").([]any)
	member, _ := roles[0].(map[string]any)["id"].(string)
	if a := r.do(t, "PUT", "/v3/projects/"+project+"/users/"+alice+"/roles/"+member, "", "X-Auth-Token", admin); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.text)
	}
	token := r.logInTo(t, "alice", inProject("team"))
	c, err = ask(token)
	must(t, err)
	if c.UserID != alice || c.ProjectID != project || c.Admin || strings.Join(c.Roles, " ") != "member reader" && strings.Join(c.Roles, " ") != "reader member" {
		t.Fatalf("%+v", c)
	}

	for _, x := range []struct {
		name, token string
		want        error
	}{
		{"unscoped", r.logInTo(t, "alice", `"unscoped"`), ErrForbidden},
		{"none", "", ErrNoCredentials},
		{"rubbish", "gAAAAA", ErrUnauthorized},
		{"one of ours", newRig(t).token(t, "demo", ""), ErrUnauthorized},
	} {
		if _, err = ask(x.token); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}

	// A revoked token is out as soon as it is asked about again.
	if a := r.do(t, "DELETE", "/v3/auth/tokens", "", "X-Auth-Token", token, "X-Subject-Token", token); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.text)
	}
	k, err = NewKeystone(r.url+"/v3", KeystoneOptions{})
	must(t, err)
	if _, err = ask(token); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
}
