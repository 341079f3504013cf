package catalog

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPlace(t *testing.T) {
	for _, c := range []struct{ where, file, display, err string }{
		{where: "catalog.db", file: "catalog.db"},
		{where: "/var/lib/a b?#%.db", file: "/var/lib/a b?#%.db"},
		{where: "sqlite:catalog.db", file: "catalog.db"},
		{where: "sqlite:/x/y", file: "/x/y"},
		{where: "sqlite:///x/y", file: "///x/y"},
		{where: "sqlite://catalog.db", err: "sqlite:FILE"},
		{where: "", err: "no file is named"},
		{where: "sqlite:", err: "no file is named"},
		{where: "mysql://root:hunter2@db/x", err: "mysql:// is neither"},
		{where: "postgres://u:hunter2@db/cairn", display: "postgres://u@db:5432/cairn"},
		{where: "postgresql://u:hunter2@db:6432/cairn?sslmode=disable", display: "postgres://u@db:6432/cairn"},
		{where: "postgres://db/cairn?user=u&password=hunter2", display: "postgres://u@db:5432/cairn"},
		{where: "postgres:///cairn?host=/run/postgresql&user=u", display: "postgres://u@/cairn?host=/run/postgresql"},
		{where: "postgres://u@db/cairn?sslmode=wrong", err: "sslmode"},
		{where: "postgres://u@db:port/cairn", err: "port"},
		// An odd character that was not written as %XX cuts the password.
		{where: "postgres://u:hunt@hunter2@db/cairn", err: "cannot be understood"},
		{where: "postgres://u:1/hunter2@db/cairn", err: "cannot be understood"},
		{where: "postgres://u:hunter2/x@db/cairn", err: "cannot be understood"},
		{where: "postgres://u:hunter2%@db/cairn", err: "cannot be understood"},
		{where: "postgres://u:hunter2#@db:x/cairn", err: "cannot be understood"},
		{where: "postgres://db:x/cairn?pass%77ord=hunter2", err: "cannot be understood"},
	} {
		t.Setenv("PGPASSWORD", "")
		p, err := parsePlace(c.where)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v", c.where, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.where, err)
		case c.display != "":
			if got := display(p.postgres); got != c.display {
				t.Errorf("%s is shown as %s", c.where, got)
			}
		case p.file != c.file:
			t.Errorf("%s is the file %s", c.where, p.file)
		}
	}
}

func TestHasPassword(t *testing.T) {
	for where, want := range map[string]bool{
		"sqlite:/x:y@z": false, "postgres://u@db:5432/cairn": false, "postgres:///cairn?host=/run/postgresql": false,
		"postgres://u:x@db/cairn": true, "postgresql://db/cairn?user=u&password=x": true, "postgres://db/cairn?pass%77ord=x": true,
	} {
		if got := HasPassword(where); got != want {
			t.Errorf("%s: %v", where, got)
		}
	}
	for where, want := range map[string]bool{"sqlite:x": true, "postgres://u@db/cairn": true, "mysql://db/x": false, "sqlite:": false} {
		if err := Check(where); (err == nil) != want {
			t.Errorf("%s: %v", where, err)
		}
	}
}

// No password is shown, whatever it is and wherever it stands, when nobody answers
// or when the address makes no sense.
func TestNoPasswordShown(t *testing.T) {
	t.Setenv("PGCONNECT_TIMEOUT", "1")
	rapid.Check(t, func(t *rapid.T) {
		secret := "s3" + rapid.StringMatching(`[a-z@:/?#%&= ]{0,4}`).Draw(t, "odd") + "cr3t"
		written := secret
		if rapid.Bool().Draw(t, "escaped") {
			written = url.QueryEscape(secret)
		}
		where := fmt.Sprintf(rapid.SampledFrom([]string{
			"postgres://u:%s@127.0.0.1:1/db", "postgresql://u:%s@127.0.0.1:1", "postgres://127.0.0.1:1/db?user=u&password=%s",
			"postgres://u:%s@127.0.0.1:x/db", "postgres://u@127.0.0.1:1/db?sslmode=wrong&password=%s", "postgres://127.0.0.1:1/db?sslpassword=%s&sslmode=disable",
		}).Draw(t, "form"), written)
		_, err := Open(t.Context(), where)
		if err == nil {
			t.Fatal("somebody listens on port 1")
		}
		for _, part := range []string{secret, written, "cr3t"} {
			if strings.Contains(err.Error(), part) {
				t.Fatalf("%s: %v", where, err)
			}
		}
	})
}

// The password comes from a file or the environment as well.
func TestPasswordElsewhere(t *testing.T) {
	where := postgresTest(t)
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	if _, err = Open(t.Context(), u.String()); err == nil || !strings.Contains(err.Error(), "lets nobody in") {
		t.Errorf("without a password: %v", err)
	}
	t.Setenv("PGPASSWORD", password)
	openTest(t, u.String())
	t.Setenv("PGPASSWORD", "")
	file := filepath.Join(t.TempDir(), "pgpass")
	if err = os.WriteFile(file, []byte("*:*:*:*:"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", file)
	openTest(t, u.String())
}
