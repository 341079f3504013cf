package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/jackc/pgx/v5"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

// cloud is a host whose agent serves the Block Storage API, and the stock clients.
type cloud struct {
	*host
	addr     string
	rng      *rand.ChaCha8
	session  *transcript
	as       func(who string) []string // who somebody is, for a client's environment; nil: one of the built-in users
	database string                    // address of the catalog, with the password; empty: it is a file
}

// newCloud starts it, with a project, a user of it, and an administrator. Backups are
// read slowly, and one at a time, so that there is time to cancel one.
func newCloud(t *testing.T, settings ...string) *cloud {
	t.Helper()
	c := emptyCloud(t, append([]string{"--read-limit", "4MiB", "--jobs", "1"}, settings...)...)
	c.addUsers("demo", "other", "admin")
	c.startServe()
	c.startAgent()
	return c
}

// emptyCloud has a repository and nobody who may use it, and does not run yet.
func emptyCloud(t *testing.T, settings ...string) *cloud {
	t.Helper()
	needClients(t)
	c := &cloud{host: emptyHost(t, cairnBinary(t)), rng: rand.NewChaCha8([32]byte{4}), session: newTranscript()}
	c.addr = freeAddress(t)
	for i := range 6 {
		c.stores = append(c.stores, c.path(fmt.Sprintf("store%d", i+1)))
	}
	c.settings = append([]string{"--api-listen", c.addr, "--host", "node-1"}, settings...)
	c.initRepository(4, 2)
	return c
}

// needClients ends a test where the stock clients are not installed.
func needClients(t *testing.T) {
	t.Helper()
	needs.Tool(t, "cinder", "python3-cinderclient")
	needs.Tool(t, "openstack", "python3-openstackclient")
}

// addUsers makes users, each with a project of the same name. "admin" is one.
func (c *cloud) addUsers(names ...string) {
	c.t.Helper()
	for _, who := range names {
		c.operator("project", "create", who)
		if err := os.WriteFile(c.path(who+".pw"), []byte(who+"-secret\n"), 0o600); err != nil {
			c.t.Fatal(err)
		}
		args := []string{"user", "create", who, "--project", who, "--password-file", c.path(who + ".pw")}
		if who == "admin" {
			args = append(args, "--admin")
		}
		c.operator(args...)
	}
}

// builtIn is one of those users, for a client's environment.
func (c *cloud) builtIn(who string) []string {
	return []string{"OS_AUTH_URL=http://" + c.addr + "/identity/v3", "OS_USERNAME=" + who, "OS_PASSWORD=" + who + "-secret", "OS_PROJECT_NAME=" + who}
}

// freeAddress is one that nobody listened on a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// operator runs a command of Cairn's own, which has to succeed.
func (c *cloud) operator(args ...string) string {
	c.t.Helper()
	out, code := c.run(args...)
	if code != 0 {
		c.t.Fatalf("cairn %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// run runs a command of Cairn's own, and returns what it printed and its exit code.
func (c *cloud) run(args ...string) (string, int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "CAIRN_STATE="+c.path("state"), "CAIRN_SOCKET="+c.path("agent.sock"))
	return c.outcome(ctx, cmd)
}

// outcome runs a program to its end.
func (c *cloud) outcome(ctx context.Context, cmd *exec.Cmd) (string, int) {
	c.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), errors.Join(err, ctx.Err()), out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// client runs a client as somebody, and returns what it
// printed and its exit code.
func (c *cloud) client(who string, args ...string) (string, int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	command := slices.Concat(c.within, args)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	as := c.builtIn
	if c.as != nil {
		as = c.as
	}
	cmd.Env = append(append(os.Environ(),
		"OS_IDENTITY_API_VERSION=3", "OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default", "COLUMNS=200", "LC_ALL=C.UTF-8"), as(who)...)
	return c.outcome(ctx, cmd)
}

// did runs a client, which has to succeed, and writes it into the session.
func (c *cloud) did(who string, args ...string) string {
	c.t.Helper()
	out, code := c.client(who, args...)
	c.session.add(who, args, out)
	if code != 0 {
		c.t.Fatalf("%s %s: exit code %d\n%s", who, strings.Join(args, " "), code, out)
	}
	return out
}

// refused runs a client, which has to fail with these words.
func (c *cloud) refused(who, words string, args ...string) {
	c.t.Helper()
	out, code := c.client(who, args...)
	c.session.add(who, args, out)
	if code == 0 || !strings.Contains(out, words) {
		c.t.Errorf("%s %s: exit code %d, want one that is not 0 and %q\n%s", who, strings.Join(args, " "), code, words, out)
	}
}

// value is one property of a thing, as the openstack client shows it. What is not there
// is "".
func (c *cloud) value(who, kind, ref, property string) string {
	c.t.Helper()
	args := append(append([]string{"openstack"}, strings.Fields(kind)...), "show", ref, "-f", "json")
	out, code := c.client(who, args...)
	if code != 0 {
		return ""
	}
	var all map[string]any
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return fmt.Sprint(all[property])
}

const (
	backupKind = "volume backup"
	volumeKind = "volume"
)

// until waits for a state of a thing, asking the agent itself: the clients are slow.
func (c *cloud) until(what string, reached func(ctx context.Context) (bool, error)) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	if err := poll(ctx, 20*time.Millisecond, func() (bool, error) { return reached(ctx) }); err != nil {
		c.t.Fatalf("wait until %s: %v", what, err)
	}
}

// quiet waits until no job is left.
func (c *cloud) quiet() {
	c.t.Helper()
	c.until("no job is left", func(ctx context.Context) (bool, error) {
		st, err := c.control.Status(ctx)
		return err == nil && st.Queued+st.Running+st.Undecided == 0, err
	})
}

// named finds a backup of this name.
func (c *cloud) named(name string) agent.Backup {
	c.t.Helper()
	all, err := c.control.Backups(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, b := range all {
		if b.Name == name {
			return b
		}
	}
	c.t.Fatalf("there is no backup %s", name)
	return agent.Backup{}
}

// backedUp backs a volume up with the cinder client and waits for it.
func (c *cloud) backedUp(who, name string, args ...string) agent.Backup {
	c.t.Helper()
	c.did(who, append([]string{"cinder", "backup-create", "--name", name}, args...)...)
	c.quiet()
	b := c.named(name)
	if b.Status != agent.BackupAvailable {
		c.t.Fatalf("backup %s is %s: %s", name, b.Status, b.FailReason)
	}
	return b
}

// plane is a volume of the data plane, by its ID.
func (c *cloud) plane(id string) agent.Volume {
	c.t.Helper()
	v, err := c.control.Volume(c.t.Context(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

// fill writes random bytes to a volume and its shadow.
func (c *cloud) fill(id string, shadow []byte, at, n int) {
	c.t.Helper()
	_, _ = c.rng.Read(shadow[at : at+n])
	c.write(c.plane(id), func(ctx context.Context, conn *nbd.Client) error {
		for off := at; off < at+n; off += mib {
			if err := conn.WriteAt(ctx, shadow[off:min(off+mib, at+n)], int64(off), false); err != nil {
				return err
			}
		}
		return conn.Flush(ctx)
	})
}

// holds compares the beginning of a volume with its shadow.
func (c *cloud) holds(id string, shadow []byte, what string) {
	c.t.Helper()
	conn, err := nbd.Dial(c.t.Context(), c.plane(id).URI, nbd.ClientOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	got := make([]byte, len(shadow))
	for at := 0; at < len(got) && err == nil; at += mib {
		err = conn.ReadAt(c.t.Context(), got[at:at+mib], int64(at))
	}
	if err = errors.Join(err, conn.Close()); err != nil || !bytes.Equal(got, shadow) {
		c.t.Errorf("%s differs, %v", what, err)
	}
	c.until("nobody uses the volume", func(ctx context.Context) (bool, error) {
		v, verr := c.control.Volume(ctx, id)
		return !v.InUse, verr
	})
}

// emptyDatabase removes all that is in the catalog's database.
func (c *cloud) emptyDatabase() {
	c.t.Helper()
	db, err := pgx.Connect(c.t.Context(), c.database)
	if err != nil {
		c.t.Fatal(err)
	}
	var backups int
	err = db.QueryRow(c.t.Context(), `SELECT COUNT(*) FROM backups WHERE host = 'node-1'`).Scan(&backups)
	if err != nil || backups == 0 {
		c.t.Fatalf("%d backups of the agent are in the database, %v", backups, err)
	}
	_, err = db.Exec(c.t.Context(), `DROP SCHEMA public CASCADE; CREATE SCHEMA public`)
	if err = errors.Join(err, db.Close(c.t.Context())); err != nil {
		c.t.Fatal(err)
	}
}

// loseCatalog ends the agent, and starts it again with an empty catalog.
func (c *cloud) loseCatalog() {
	c.t.Helper()
	c.kill(c.agent)
	if c.database != "" {
		c.emptyDatabase()
		c.startAgent()
		return
	}
	files, err := filepath.Glob(c.path("state", "catalog.db*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil || len(files) == 0 {
		c.t.Fatalf("the catalog's files: %v, %v", files, err)
	}
	c.startAgent()
}
