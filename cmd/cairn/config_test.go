package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

// settings runs "cairn agent" with a settings file, as far as its settings.
func settings(t *testing.T, file string, args ...string) (*agentSettings, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cairn.yaml")
	if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	app := newApp(t.Output(), t.Output())
	var s *agentSettings
	var err error
	cmd := app.Command("agent")
	inner := *cmd
	app.Commands = append(app.Commands[:0:0], &inner)
	inner.Action = func(c *cli.Context) error {
		s, err = agentSettingsOf(c)
		if s != nil {
			for _, p := range append([]*string{&s.State, &s.Socket, &s.PasswordFile}, pointers(s.Stores)...) {
				*p = strings.Replace(*p, filepath.Dir(name), "DIR", 1)
			}
		}
		return nil
	}
	line, aerr := arrange(app, append([]string{"cairn", "agent", "--config", name}, args...))
	if aerr != nil {
		t.Fatal(aerr)
	}
	if rerr := app.RunContext(t.Context(), line); rerr != nil {
		t.Fatal(rerr)
	}
	return s, err
}

func pointers(l []string) []*string {
	var p []*string
	for i := range l {
		p = append(p, &l[i])
	}
	return p
}

func TestSettings(t *testing.T) {
	for _, name := range []string{"CAIRN_SOCKET", "CAIRN_STATE", "CAIRN_NBD_DIR", "CAIRN_PASSWORD_FILE", "CAIRN_CONTROL"} {
		t.Setenv(name, "") // put back at the end
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	s, err := settings(t, `
state: /srv/cairn
stores: [/a, b, "file:///c", "s3://bucket/p?endpoint=https://h:9000&profile=x&bandwidth=50MiB"]
password-file: secret
read-limit: 200MiB
retain: 30d
jobs: 3
log-level: warn
`, "--jobs", "5", "--control", "/x/y.sock")
	if err != nil {
		t.Fatal(err)
	}
	want := &agentSettings{
		State: "/srv/cairn", Socket: defaultSocket(), Control: "/x/y.sock", NBDDir: defaultNBDDir(),
		Stores: []string{"/a", "DIR/b", "/c", "s3://bucket/p?endpoint=https://h:9000&profile=x&bandwidth=50MiB"}, PasswordFile: "DIR/secret",
		Jobs: 5, ReadLimit: "200MiB", readLimit: 200 << 20, Retain: "30d", retain: 720 * time.Hour, Scrub: "30d", scrub: 720 * time.Hour, ScrubRate: "10MiB", scrubRate: 10 << 20, LogLevel: "warn", LogFormat: "text",
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}

func TestSettingsErrors(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"stat: /x", `unknown field "stat"`},
		{"jobs: many", "line 1: \"many\" stands where a number is expected"},
		{"read-limit: 5GB", "write 5GiB"},
		{"scrub: 5m", "too often"},
		{"scrub-rate: 5GB", "write 5GiB"},
		{"retain: 1y", "retain: \"1y\" is not a length of time"},
		{"stores: [\"swift://container\"]", "does not know swift://"},
		{"stores: [\"s3://Bucket\"]", "is no bucket's name"},
		{"jobs: -1", "cannot run at once"},
		{": :", "settings file"},
		{"jobs: 1\nno-serve: perhaps", "line 2: \"perhaps\" stands where true or false is expected"},
		{"stores: [/a\njobs: 1", "line 2: "},
		{"\x00\x00", "is damaged"},
	} {
		if _, err := settings(t, c.file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.file, err, c.want)
		} else if !isUsage(err) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q is no sentence about usage", c.file, err)
		}
	}
}

// What cannot be read as a whole must not pass for an empty file.
func TestSettingsFromPipe(t *testing.T) {
	if err := (&agentSettings{}).read("/dev/null"); !isUsage(err) || !strings.Contains(err.Error(), "no regular file") {
		t.Error(err)
	}
}

// TestRepositories: more repositories come from the settings file and from files of
// their own, each with paths relative to where they stand.
func TestRepositories(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "far.yaml")
	if err := os.WriteFile(file, []byte("stores: [s, /abs, 's3://bucket']\npassword-file: pw\nretain: 2d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := settings(t, "state: st\nretain: 1d\nrepositories:\n  near: {stores: [/n], password-file: /p}\n  far: {stores: [/x], password-file: /x}\n", "--repo", "far="+file)
	if err != nil || len(s.Repositories) != 2 {
		t.Fatal(s, err)
	}
	want := repoSettings{Stores: []string{filepath.Join(dir, "s"), "/abs", "s3://bucket"}, PasswordFile: filepath.Join(dir, "pw"), Retain: "2d", retain: 48 * time.Hour}
	if got := *s.Repositories["far"]; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := *s.Repositories["near"]; got.retain != 24*time.Hour || got.PasswordFile != "/p" {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct{ file, want string }{
		{"repositories: {x: }", "repository x says nothing"},
		{"repositories: {x: {stores: [/a]}}", "repository x has no password"},
		{"repositories: {x: {password-file: /a}}", "repository x has no stores"},
		{"repositories: {x: {stores: [/a], password-file: /a, retain: soon}}", "repository x: retain: "},
		{"repositories: {x: {stores: ['swift://a'], password-file: /a}}", "it does not know swift://"},
		{"repositories: {x: {store: /a}}", "unknown field \"store\""},
		{"repositories: {default: {stores: [/a], password-file: /a}}", "choose another name"},
		{"repositories: {a/b: {stores: [/a], password-file: /a}}", "cannot be the name of a repository"},
	} {
		if _, err := settings(t, c.file); err == nil || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitUsage || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", c.file, err, c.want)
		}
	}
}

// Every flag of the agent has its key in the file, but the one that names it.
func TestSettingsAreComplete(t *testing.T) {
	keys := map[string]bool{"config": true, "help": true}
	for f := range reflect.TypeFor[agentSettings]().Fields() {
		keys[strings.TrimSuffix(f.Tag.Get("yaml"), "s")] = true
		keys[f.Tag.Get("yaml")] = true
		if f.Tag.Get("yaml") == ",inline" {
			for in := range f.Type.Fields() {
				keys[in.Tag.Get("yaml")] = true
			}
		}
	}
	keys["repo"] = keys["repositories"] // there with what FILE has
	for _, f := range agentCommand().Flags {
		if !keys[f.Names()[0]] {
			t.Errorf("--%s has no key", f.Names()[0])
		}
	}
}

// The catalog is a file beside the settings, or a database whose password no command
// line shows.
func TestCatalogSettings(t *testing.T) {
	const db = "postgres://cairn@db:5432/cairn?sslmode=verify-full"
	for _, c := range []struct {
		file string
		args []string
		want string
	}{
		{file: "catalog: sqlite:records.db", want: "sqlite:DIR/records.db"},
		{file: "catalog: sqlite:/x/records.db", want: "sqlite:/x/records.db"},
		{file: "catalog: " + db, want: db},
		{file: "catalog: postgres://cairn:secret@db/cairn", want: "postgres://cairn:secret@db/cairn"},
		{file: "catalog: sqlite:/x", args: []string{"--catalog", db}, want: db},
		{args: []string{"--catalog", "sqlite:/x/y"}, want: "sqlite:/x/y"},
		{},
	} {
		s, err := settings(t, c.file, c.args...)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		dir := filepath.Dir(strings.TrimPrefix(s.Catalog, "sqlite:"))
		if got := strings.Replace(s.Catalog, dir, "DIR", 1); got != c.want && s.Catalog != c.want {
			t.Errorf("%+v: %s", c, s.Catalog)
		}
	}
	for _, c := range []struct {
		file string
		args []string
		want string
	}{
		{file: "catalog: records.db", want: "does not say which database"},
		{file: "catalog: mysql://db/x", want: "neither sqlite nor postgres"},
		{file: "catalog: 'sqlite:'", want: "no file is named"},
		{file: "catalog: postgres://u:hunter2@db:x/c", want: "cannot be understood"},
		{args: []string{"--catalog", "postgres://cairn:hunter2@db/cairn"}, want: "PGPASSFILE"},
		{args: []string{"--catalog", "postgres://db/cairn?user=u&password=hunter2"}, want: "PGPASSFILE"},
	} {
		if _, err := settings(t, c.file, c.args...); !isUsage(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
