package cinderapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// cloud is the API behind a real socket, with an identity service that takes every
// password: the token is the name of the user.
type cloud struct {
	*server
	t   *testing.T
	url string
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	needClients(t)
	t.Parallel() // a client spends most of its second in starting
	c := &cloud{server: newServer(t), t: t}
	o := c.options()
	o.Public, o.AuthURL = "", ""
	api := New(o)
	mux := http.NewServeMux()
	mux.Handle("/volume/", api)
	mux.Handle("/volume", api)
	mux.Handle("/image", api)
	mux.Handle("/image/", api)
	mux.HandleFunc("/identity/v3/auth/tokens", c.token)
	mux.HandleFunc("/identity/", c.identity)
	mux.HandleFunc("/identity", c.identity)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *cloud) identity(w http.ResponseWriter, _ *http.Request) {
	c.write(w, http.StatusMultipleChoices, object{"versions": object{"values": []object{{
		"id": "v3.14", "status": "stable", "links": []object{{"rel": "self", "href": c.url + "/identity/v3/"}},
	}}}})
}

func (c *cloud) write(w http.ResponseWriter, status int, body object) {
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func (c *cloud) token(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Auth struct {
			Identity struct {
				Password struct{ User struct{ Name string } }
			}
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	who := in.Auth.Identity.Password.User.Name
	caller := callers[who]
	endpoint := func(id, service, path string) object {
		return object{"id": id, "name": service, "type": service, "endpoints": []object{{
			"id": id + "1", "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": c.url + path,
		}}}
	}
	role := "member"
	if caller.Admin {
		role = "admin"
	}
	w.Header().Set("X-Subject-Token", who)
	domain := object{"id": "default", "name": "Default"}
	c.write(w, http.StatusCreated, object{"token": object{
		"methods": []string{"password"}, "issued_at": "2026-01-02T15:04:05.000000Z", "expires_at": "2099-01-02T15:04:05.000000Z",
		"user":    object{"id": caller.UserID, "name": who, "domain": domain},
		"project": object{"id": caller.ProjectID, "name": caller.ProjectName, "domain": domain},
		"roles":   []object{{"id": role, "name": role}},
		"catalog": []object{
			endpoint("i", "identity", "/identity"), endpoint("v", "volumev3", "/volume/v3/"+caller.ProjectID), endpoint("g", "image", "/image"),
		},
	}})
}

// run runs a client as a user and returns what it printed. It fails the test when
// the client's success is not what was expected.
func (c *cloud) run(t *testing.T, user string, succeeds bool, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8", "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1",
		"OS_AUTH_URL=" + c.url + "/identity", "OS_USERNAME=" + user, "OS_PASSWORD=x", "OS_PROJECT_NAME=" + callers[user].ProjectName,
		"OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default", "OS_IDENTITY_API_VERSION=3",
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if (err == nil) != succeeds {
		t.Fatalf("%s %s as %s: %v\n%s", name, strings.Join(args, " "), user, err, out.String())
	}
	return out.String()
}

// named is the backup of a name.
func (c *cloud) named(t *testing.T, name string) Backup {
	t.Helper()
	for _, b := range c.backups {
		if b.Name == name {
			return b
		}
	}
	t.Fatalf("no backup %s", name)
	return Backup{}
}

// needClients ends the test when a client is missing.
func needClients(t *testing.T) {
	t.Helper()
	needs.Tool(t, "cinder", "python3-cinderclient")
	needs.Tool(t, "openstack", "python3-openstackclient")
	if testing.Short() {
		t.Skip("each run of a client takes a second")
	}
}

// has fails unless the output has each of those.
func has(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(out, w) {
			t.Fatalf("no %q in:\n%s", w, out)
		}
	}
}

// lacks fails if the output has one of those.
func lacks(t *testing.T, out string, unwanted ...string) {
	t.Helper()
	for _, w := range unwanted {
		if strings.Contains(out, w) {
			t.Fatalf("%q in:\n%s", w, out)
		}
	}
}
