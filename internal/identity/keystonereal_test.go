package identity

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/identity/keystonetest"
)

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
	if testing.Short() {
		t.Skip("starts many programs: not with -short")
	}
	r := &rig{url: keystonetest.New(t).URL}
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
