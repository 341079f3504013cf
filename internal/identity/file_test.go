package identity

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// drawDirectory makes any directory that is allowed.
func drawDirectory(t *rapid.T) *Directory {
	d, err := newDirectory(rapid.SliceOfN(rapid.Byte(), keySize, keySize).Draw(t, "key"))
	if err != nil {
		t.Fatal(err)
	}
	name := rapid.StringMatching(`[^\pC\pZ]([^\pC]{0,14}[^\pC\pZ])?`)
	id := func(label string) string {
		b := rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, label)
		return ident(append(b, 1)).String()
	}
	unique := func(label string, n int) []string {
		return rapid.SliceOfNDistinct(name, 0, n, rapid.ID[string]).Draw(t, label)
	}
	ids := map[string]bool{}
	for _, n := range unique("projects", 5) {
		p := &Project{ID: id("id"), Name: n, Description: rapid.StringN(-1, -1, maxDescription).Draw(t, "description")}
		if !ids[p.ID] {
			ids[p.ID] = true
			d.projects = append(d.projects, p)
		}
	}
	for _, n := range unique("users", 5) {
		u := &User{ID: id("id"), Name: n, Password: noUser, Admin: rapid.Bool().Draw(t, "admin"), Projects: map[string][]string{}}
		for _, p := range d.projects {
			if roles := rapid.SampledFrom([][]string{nil, {roleMember}, {roleReader}, {roleReader, roleMember}}).Draw(t, "roles"); roles != nil {
				u.Projects[p.ID], u.DefaultProject = roles, p.ID
			}
		}
		if !ids[u.ID] {
			ids[u.ID] = true
			d.users = append(d.users, u)
		}
	}
	d.sort()
	return d
}

// What is written is what is read.
func TestFileRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDirectory(t)
		data, err := d.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if !reflect.DeepEqual(again, d) {
			t.Fatalf("read %+v, written %+v", again, d)
		}
		if data2, err := again.encode(); err != nil || !bytes.Equal(data, data2) {
			t.Fatalf("written differently: %v", err)
		}
	})
}

func TestFileRefusals(t *testing.T) {
	const id, id2 = "0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef"
	key := `"` + strings.Repeat("A", 43) + `="`
	file := func(projects, users string) string {
		return `{"format":"cairn identity","version":1,"key":` + key + `,"projects":[` + projects + `],"users":[` + users + `]}`
	}
	project := func(id, name string) string {
		return `{"id":"` + id + `","name":"` + name + `","description":""}`
	}
	user := func(id, name, hash, rest string) string {
		return `{"id":"` + id + `","name":"` + name + `","password":"` + hash + `","default_project":"","admin":false,` + rest + `}`
	}
	good := user(id, "u", noUser, `"projects":{"`+id2+`":["member"]}`)
	if _, err := decode([]byte(file(project(id2, "p"), good))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, file, want string }{
		{"empty", ``, "no JSON"},
		{"cut", file("", "")[:60], "no JSON"},
		{"another file", `{"version":1}`, "no users file"},
		{"newer", `{"format":"cairn identity","version":2,"new":1}`, "needs a newer cairn"},
		{"no version", `{"format":"cairn identity"}`, "no version 0"},
		{"unknown field", strings.Replace(file("", ""), `"key"`, `"more":1,"key"`, 1), `unknown field "more"`},
		{"short key", strings.Replace(file("", ""), key, `"AAAA"`, 1), "3 bytes"},
		{"more behind it", file("", "") + "{}", "no JSON"},
		{"bad UTF-8", file(project(id, "a\xff"), ""), "UTF-8"},
		{"null project", file("null", ""), "project is null"},
		{"null user", file("", "null"), "user is null"},
		{"bad ID", file(project("xyz", "p"), ""), "32 lower-case"},
		{"upper-case ID", file(project(strings.ToUpper(id), "p"), ""), "32 lower-case"},
		{"ID zero", file(project(strings.Repeat("0", 32), "p"), ""), "32 lower-case"},
		{"equal IDs", file(project(id, "p")+","+project(id, "q"), ""), "another's"},
		{"equal names", file(project(id, "p")+","+project(id2, "p"), ""), "two projects"},
		{"equal users", file(project(id2, "p"), good+","+strings.Replace(good, id, id2, 1)), "two users"},
		{"empty name", file(project(id, ""), ""), "is empty"},
		{"long name", file(project(id, strings.Repeat("x", 65)), ""), "at most 64"},
		{"control character", file(project(id, `a\u0007`), ""), "control"},
		{"space", file(project(id, ` a`), ""), "space"},
		{"name like an ID", file(project(id, id2), ""), "looks like an ID"},
		{"no projects of a user", file("", user(id, "u", noUser, `"projects":null`)), "missing"},
		{"unknown project", file("", good), "is not there"},
		{"project by name", file(project(id2, "p"), user(id, "u", noUser, `"projects":{"p":["member"]}`)), "is not there"},
		{"unknown role", file(project(id2, "p"), strings.Replace(good, `"member"`, `"admin"`, 1)), "roles"},
		{"no role", file(project(id2, "p"), strings.Replace(good, `"member"`, ``, 1)), "no role"},
		{"unknown default", file("", strings.Replace(user(id, "u", noUser, `"projects":{}`), `"default_project":""`, `"default_project":"p"`, 1)), "default project"},
		{"no hash", file("", user(id, "u", "secret", `"projects":{}`)), "neither"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := decode([]byte(c.file))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestFileOfOthers(t *testing.T) {
	r := newRig(t)
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o644} {
		must(t, os.Chmod(r.name, mode))
		if _, err := OpenUsers(vfs.OS(), r.name); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
		// A service that runs does not go on with what it knows.
		if _, err := r.directory(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	must(t, os.Chmod(r.name, 0o600))
	if _, err := r.directory(); err != nil {
		t.Fatal(err)
	}
	must(t, os.Truncate(r.name, maxFile+1))
	if _, err := OpenUsers(vfs.OS(), r.name); err == nil || !strings.Contains(err.Error(), "right file") {
		t.Error(err)
	}
	if _, err := OpenUsers(vfs.OS(), filepath.Dir(r.name)); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Error(err)
	}
	must(t, os.Remove(r.name))
	if _, err := OpenUsers(vfs.OS(), r.name); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := r.directory(); !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), r.name) {
		t.Error(err)
	}
}

// A change is seen at the next look, be the file replaced or written in place.
func TestFileIsReadAgain(t *testing.T) {
	r := newRig(t)
	data, err := os.ReadFile(r.name)
	must(t, err)
	for i, name := range []string{"dem1", "dem2", "dem3"} {
		data = bytes.ReplaceAll(data, []byte(`"name": "dem`+string("o12"[i])), []byte(`"name": "`+name))
		must(t, os.WriteFile(r.name, data, 0o600))
		if d, derr := r.directory(); derr != nil || d.projectByName(name) == nil {
			t.Fatalf("%s is not seen", name)
		}
	}
	must(t, os.Chtimes(r.name, time.Time{}, time.Now().Add(-time.Hour)))
	_, err = r.directory()
	must(t, err)
	before, err := r.directory()
	must(t, err)
	if again, err := r.directory(); err != nil || again != before {
		t.Fatalf("a file that did not change is read again: %v", err)
	}
	r.edit(t, func(d *Directory) error { _, err := d.CreateProject("new", ""); return err })
	if d, err := r.directory(); err != nil || d.projectByName("new") == nil {
		t.Fatal(err)
	}
}
