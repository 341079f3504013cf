package e2e

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
)

// TestKeystone is an agent whose users are those of a real Keystone, driven by the stock
// clients. Keystone is set up by the commands of the docs.
func TestKeystone(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Keystone and many clients: not with -short")
	}
	t.Parallel() // the clients spend most of their time in starting, and waiting
	c := newRegion(t)
	volume, backup := c.backsUp(t)
	t.Run("quota", c.setsQuota)
	t.Run("other project", func(t *testing.T) { c.seesNothing(t, volume, backup) })
	t.Run("refused", func(t *testing.T) { c.refuses(t, backup) })
	t.Run("commands", c.operates)
	t.Run("cache", c.asksOnce)
	t.Run("down", c.outlives)
	t.Run("revoked", c.forgets)
	t.Run("project deleted", func(t *testing.T) { c.losesProject(t, backup) })
	t.Run("expired", c.expires)
}

// backsUp is the main job, as alice of the project web, by names and by IDs.
func (c *region) backsUp(t *testing.T) (volume string, backup agent.Backup) {
	t.Helper()
	content := make([]byte, 8*mib)
	c.did("alice", "openstack", "volume", "create", "--size", "1", "disk")
	volume = c.value("alice", volumeKind, "disk", "id")
	c.fill(volume, content, 0, len(content))
	backup = c.backedUp("alice by ID", "monday", "disk")
	if backup.Project != c.ids["web"] {
		t.Errorf("the backup belongs to %s, not to the project %s", backup.Project, c.ids["web"])
	}
	c.fill(volume, content, 2*mib, mib)
	increment := c.backedUp("alice", "tuesday", volume, "--incremental")
	if increment.Parent != backup.ID || increment.BytesRead > 3*mib {
		t.Errorf("the incremental read %d bytes and starts from %q", increment.BytesRead, increment.Parent)
	}
	if out := c.did("alice by ID", "openstack", "volume", "backup", "list", "-f", "value", "-c", "Name"); out != "tuesday\nmonday\n" {
		t.Errorf("the backups are\n%s", out)
	}
	if out := c.did("alice", "cinder", "backup-show", "tuesday"); !rowHas(out, "id", increment.ID) || !rowHas(out, "volume_id", volume) {
		t.Errorf("tuesday is shown as\n%s", out)
	}
	if got := c.value("alice", backupKind, backup.ID, "name"); got != "monday" {
		t.Errorf("monday is shown as %s", got)
	}
	c.did("alice by ID", "cinder", "backup-restore", "tuesday")
	c.quiet()
	c.holds(c.value("alice", volumeKind, "restore_backup_"+increment.ID, "id"), content, "the incremental, restored to a new volume")
	log := c.readFile("state", "audit.log")
	if !strings.Contains(log, `"`+c.ids["alice"]+`"`) || !strings.Contains(log, `"alice"`) {
		t.Errorf("the audit log does not name who it was:\n%s", log)
	}
	return volume, backup
}

// setsQuota is for an administrator, who says the project's name or its ID.
func (c *region) setsQuota(t *testing.T) {
	web := c.ids["web"]
	c.did("admin", "cinder", "quota-update", "--backups", "2", "web")
	c.refused("alice", "Maximum number of backups allowed (2) exceeded", "cinder", "backup-create", "disk")
	c.did("admin", "cinder", "quota-update", "--backups", "7", web)
	c.refused("admin", "Project wep could not be found", "cinder", "quota-update", "--backups", "9", "wep")
	if out := c.did("admin", "cinder", "quota-usage", "web"); !rowHas(out, "backups", "2", "0", "7") {
		t.Errorf("the quota of web is\n%s", out)
	}
	if out := c.did("alice", "cinder", "quota-show", web); !rowHas(out, "backups", "7") {
		t.Errorf("alice sees\n%s", out)
	}
	alice := c.token(t, "alice")
	if got := c.call(t, alice, "PUT", "os-quota-sets/"+web, `{"quota_set":{"backups":100}}`); got.status != http.StatusForbidden {
		t.Errorf("alice sets her quota: %+v", got)
	}
	if got := c.call(t, alice, "GET", "os-quota-sets/"+c.ids["other"], ""); got.status != http.StatusForbidden {
		t.Errorf("alice asks for the quota of another project: %+v", got)
	}
}

// seesNothing: bob of another project cannot tell what is alice's from what is not there.
func (c *region) seesNothing(t *testing.T, volume string, backup agent.Backup) {
	t.Helper()
	if out := c.did("bob", "openstack", "volume", "backup", "list", "-f", "value", "-c", "Name"); out != "" {
		t.Errorf("bob sees\n%s", out)
	}
	c.refused("bob", "exists", "openstack", "volume", "backup", "show", backup.ID)
	bob := c.token(t, "bob")
	const nowhere = "6f1d0a3e-58a4-4a3c-9f43-b7c0b1c8d9aa"
	for _, x := range []struct{ method, path, body string }{
		{"GET", "backups/ID", ""},
		{"GET", "volumes/ID", ""},
		{"DELETE", "backups/ID", ""},
		{"PUT", "backups/ID", `{"backup":{"name":"mine"}}`},
		{"POST", "backups/ID/restore", `{"restore":{}}`},
		{"POST", "backups", `{"backup":{"volume_id":"ID"}}`},
	} {
		for _, id := range []string{backup.ID, volume} {
			theirs := c.call(t, bob, x.method, strings.ReplaceAll(x.path, "ID", id), strings.ReplaceAll(x.body, "ID", id))
			none := c.call(t, bob, x.method, strings.ReplaceAll(x.path, "ID", nowhere), strings.ReplaceAll(x.body, "ID", nowhere))
			if theirs.status != http.StatusNotFound || strings.ReplaceAll(theirs.text, id, nowhere) != none.text {
				t.Errorf("%s %s: %d %s, and of what is not there %s", x.method, x.path, theirs.status, theirs.text, none.text)
			}
		}
	}
	// Nor by the address of the other project.
	if got := c.send(t, bob, "GET", "/volume/v3/"+c.ids["web"]+"/backups", ""); got.status != http.StatusBadRequest || strings.Contains(got.text, backup.ID) {
		t.Errorf("bob at the address of web: %+v", got)
	}
}

// refuses: what is an administrator's, and callers who are not known.
func (c *region) refuses(t *testing.T, backup agent.Backup) {
	t.Helper()
	c.refused("alice", "Policy doesn't allow", "cinder", "backup-reset-state", "--state", "error", backup.ID)
	c.refused("alice with a wrong password", "(HTTP 401)", "cinder", "backup-list")
	alice := c.token(t, "alice")
	if got := c.call(t, alice, "POST", "backups/"+backup.ID+"/action", `{"os-reset_status":{"status":"error"}}`); got.status != http.StatusForbidden {
		t.Errorf("alice resets a state: %+v", got)
	}
	for name, token := range map[string]string{"none": "", "rubbish": "gAAAAABl", "changed": alice[:len(alice)-12] + "AAAAAAAAAAAA"} {
		got := c.call(t, token, "GET", "backups", "")
		if got.status != http.StatusUnauthorized || got.header.Get("Www-Authenticate") != `Keystone uri="`+c.keystone.URL+`"` {
			t.Errorf("token %s: %+v", name, got)
		}
	}
	if got := c.call(t, c.unscoped(t, "alice"), "GET", "backups", ""); got.status != http.StatusForbidden || !strings.Contains(got.text, "The token is not for a project") {
		t.Errorf("a token for no project: %+v", got)
	}
	if b := c.named("monday"); b.Status != agent.BackupAvailable {
		t.Errorf("the backup is %s", b.Status)
	}
}

// operates: the operator's own commands say where the projects and users are.
func (c *region) operates(t *testing.T) {
	web := c.ids["web"]
	for _, args := range [][]string{{"project", "list"}, {"user", "list"}} {
		if out := c.operator(args...); !strings.Contains(out, `those of a Keystone are not in it: "openstack project list"`) {
			t.Errorf("cairn %s says\n%s", strings.Join(args, " "), out)
		}
	}
	for _, args := range [][]string{
		{"quota", "show", "web"},
		{"quota", "update", "web", "--backups", "1"},
		{"volume", "create", "new", "--size", "1GiB", "--project", "web"},
		{"volume", "assign", "disk", "--project", "web"},
	} {
		out, code := c.run(args...)
		if code != 3 || !strings.Contains(out, `named by its ID here: "openstack project show web -f value -c id" tells it`) {
			t.Errorf("cairn %s: exit code %d\n%s", strings.Join(args, " "), code, out)
		}
	}
	if out, code := c.run("user", "password", "alice", "--password-file", c.path("password")); code != 3 || !strings.Contains(out, `those of a Keystone are changed there`) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	path := "export PATH=" + filepath.Dir(c.bin) + ":$PATH CAIRN_STATE=" + c.path("state") + " CAIRN_SOCKET=" + c.path("agent.sock") + "\n"
	if out := c.followPage(t, 2, path); !strings.Contains(out, "backups               7      2") {
		t.Errorf("the quota of web is\n%s", out)
	}
	c.operator("volume", "create", "given", "--size", "1GiB", "--project", web)
	if got := c.call(t, c.token(t, "alice"), "GET", "volumes?name=given", ""); got.status != http.StatusOK || !strings.Contains(got.text, `"given"`) {
		t.Errorf("alice does not see a volume that was given to web: %+v", got)
	}
}

// asksOnce: many requests with a token are one to Keystone.
func (c *region) asksOnce(t *testing.T) {
	alice, bob := c.token(t, "alice"), c.token(t, "bob")
	before := c.asked(t)
	for range 25 {
		c.answers(t, alice, http.StatusOK)
		c.answers(t, bob, http.StatusOK)
	}
	if got := c.asked(t) - before; got != 2 {
		t.Errorf("50 requests with two tokens asked Keystone %d times", got)
	}
}

// outlives: while Keystone is down, who it knows goes on, and others are told to wait.
func (c *region) outlives(t *testing.T) {
	known, other := c.token(t, "alice"), c.token(t, "alice")
	c.answers(t, known, http.StatusOK)
	c.keystone.Stop(t)
	c.answers(t, known, http.StatusOK)
	const sentence = "The identity service cannot be asked now: try again."
	got := c.call(t, other, "GET", "backups", "")
	if got.status != http.StatusServiceUnavailable || !strings.Contains(got.text, sentence) || got.header.Get("Retry-After") != "5" {
		t.Errorf("without a Keystone: %+v", got)
	}
	direct := []string{"openstack", "--os-auth-type", "admin_token", "--os-token", other, "--os-endpoint", "http://" + c.addr + "/volume/v3", "volume", "backup", "list"}
	c.refused("nobody", sentence, direct...)
	c.keystone.Start(t, time.Hour)
	c.answers(t, other, http.StatusOK)
	if out := c.did("nobody", direct...); !strings.Contains(out, "monday") {
		t.Errorf("after it has come back:\n%s", out)
	}
	if log := c.readFile("agent.log"); !strings.Contains(log, "connection refused") {
		t.Error("the log does not say why Keystone could not be asked")
	}
}

// forgets: what Keystone has taken back ends when the agent's memory of it does.
func (c *region) forgets(t *testing.T) {
	c.again(t, "--keystone-cache", "1s")
	first, second := c.token(t, "alice"), c.token(t, "alice")
	c.answers(t, first, http.StatusOK)
	c.answers(t, second, http.StatusOK)
	c.ask(t, "DELETE", "/v3/auth/tokens", "", "X-Subject-Token", first)
	c.until401(t, first)
	c.answers(t, second, http.StatusOK)

	user := "/v3/users/" + c.ids["alice"]
	c.ask(t, "PATCH", user, `{"user":{"enabled":false}}`)
	c.until401(t, second)
	c.ask(t, "PATCH", user, `{"user":{"enabled":true}}`)
	// Keystone counts whole seconds: a token of the second in which it took others back
	// is as good as they are.
	c.until("alice is let in again", func(context.Context) (bool, error) {
		return c.call(t, c.token(t, "alice"), "GET", "backups", "").status == http.StatusOK, nil
	})

	// Without a memory it ends at once.
	c.again(t, "--keystone-cache", "0")
	third := c.token(t, "alice")
	before := c.asked(t)
	for range 3 {
		c.answers(t, third, http.StatusOK)
	}
	if got := c.asked(t) - before; got != 3 {
		t.Errorf("3 requests asked Keystone %d times", got)
	}
	c.ask(t, "DELETE", "/v3/auth/tokens", "", "X-Subject-Token", third)
	c.answers(t, third, http.StatusUnauthorized)
}

// losesProject: who was in a project that Keystone has deleted is refused; its backups
// stay, for administrators.
func (c *region) losesProject(t *testing.T, backup agent.Backup) {
	t.Helper()
	alice := c.token(t, "alice")
	c.answers(t, alice, http.StatusOK)
	c.ask(t, "DELETE", "/v3/projects/"+c.ids["web"], "")
	c.answers(t, alice, http.StatusUnauthorized)
	c.answers(t, c.token(t, "bob"), http.StatusOK)
	if out := c.did("admin", "cinder", "backup-list", "--all-tenants"); !strings.Contains(out, backup.ID) {
		t.Errorf("the administrator sees\n%s", out)
	}
	var quota struct {
		Set struct {
			Backups struct {
				Limit int
				InUse int `json:"in_use"`
			}
		} `json:"quota_set"`
	}
	decode(t, c.call(t, c.boss, "GET", "os-quota-sets/"+c.ids["web"]+"?usage=True", "").text, &quota)
	if got := quota.Set.Backups; got.Limit != 7 || got.InUse != 2 {
		t.Errorf("the quota of what was deleted is %+v", got)
	}
	c.did("admin", "cinder", "backup-delete", backup.ID)
	c.until("the backup is gone", func(ctx context.Context) (bool, error) {
		_, err := c.control.Backup(ctx, backup.ID)
		return err != nil, nil
	})
	if !strings.Contains(c.operator("backup", "list"), "tuesday") {
		t.Error("the operator does not see a backup of the deleted project")
	}
}

// expires: nobody is believed longer than their token lasts, whatever is remembered.
func (c *region) expires(t *testing.T) {
	c.again(t)
	const lasts = 4 * time.Second
	c.keystone.Stop(t)
	c.keystone.Start(t, lasts)
	bob := c.token(t, "bob")
	end := time.Now().Add(lasts)
	c.answers(t, bob, http.StatusOK)
	c.until401(t, bob)
	// Keystone counts whole seconds.
	if early := time.Until(end); early > 1500*time.Millisecond || early < -5*time.Second {
		t.Errorf("the token ended %v before its time", early)
	}
}
