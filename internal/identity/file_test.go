package identity

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
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
		data = bytes.Replace(data, []byte(`"name": "dem`+string("o12"[i])), []byte(`"name": "`+name), -1)
		must(t, os.WriteFile(r.name, data, 0o600))
		d, err := r.directory()
		must(t, err)
		if d.projectByName(name) == nil {
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

// The power fails at every operation of an edit: the file is the old one or the new
// one, and the new one when the edit was told done.
func TestEditPowerLoss(t *testing.T) {
	const name = "/state/identity.json"
	projects := func(fsys vfs.FS) int {
		d, err := readOrNew(fsys, name)
		must(t, err)
		return len(d.projects)
	}
	add := func(fsys vfs.FS, n string) error {
		return Edit(t.Context(), fsys, name, func(d *Directory) error { _, err := d.CreateProject(n, ""); return err })
	}
	for at := 1; ; at++ {
		m := vfs.NewMem()
		must(t, add(m, "one"))
		ops, crashed := 0, (*vfs.Mem)(nil)
		m.OnOp(func(string, string) {
			if ops++; ops == at {
				crashed = m.Crash(rand.New(rand.NewPCG(1, uint64(at))))
			}
		})
		err := add(m, "two")
		if crashed == nil {
			must(t, err)
			if at < 5 {
				t.Fatalf("only %d operations", at)
			}
			crashed = m.Crash(rand.New(rand.NewPCG(2, 2)))
			if n := projects(crashed); n != 2 {
				t.Fatalf("%d projects after an edit that was done", n)
			}
			return
		}
		if n := projects(crashed); n != 1 && n != 2 || err == nil && n != 2 {
			t.Fatalf("operation %d: %d projects, %v", at, n, err)
		}
	}
}

// Edits at once are one after the other, and a failed one changes nothing.
func TestEditAtOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "state", "identity.json")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := Edit(t.Context(), vfs.OS(), name, func(d *Directory) error {
				_, err := d.CreateProject("p"+string(rune('a'+i)), "")
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	boom := errors.New("boom")
	err := Edit(t.Context(), vfs.OS(), name, func(d *Directory) error {
		_, err := d.DeleteProject("pa")
		return errors.Join(err, boom)
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	u, err := OpenUsers(vfs.OS(), name)
	must(t, err)
	d, err := u.Current()
	must(t, err)
	if len(d.Projects()) != 8 {
		t.Fatalf("%d projects", len(d.Projects()))
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
}

func TestEdits(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name   string
		change func(*Directory) error
		want   error
	}{
		{"project twice", func(d *Directory) error { _, err := d.CreateProject("demo", ""); return err }, ErrConflict},
		{"project without name", func(d *Directory) error { _, err := d.CreateProject("", ""); return err }, ErrInvalid},
		{"long description", func(d *Directory) error {
			_, err := d.CreateProject("x", strings.Repeat("x", maxDescription+1))
			return err
		}, ErrInvalid},
		{"no such project", func(d *Directory) error { _, err := d.DeleteProject("x"); return err }, ErrNotFound},
		{"user twice", func(d *Directory) error {
			_, err := d.CreateUser(NewUser{Name: "demo", Password: []byte("x")})
			return err
		}, ErrConflict},
		{"user of no such project", func(d *Directory) error {
			_, err := d.CreateUser(NewUser{Name: "x", Password: []byte("x"), Projects: []string{"x"}})
			return err
		}, ErrNotFound},
		{"user without password", func(d *Directory) error { _, err := d.CreateUser(NewUser{Name: "x"}); return err }, ErrInvalid},
		{"long password", func(d *Directory) error {
			_, err := d.SetPassword("demo", make([]byte, MaxPassword+1))
			return err
		}, ErrInvalid},
		{"no such user", func(d *Directory) error { _, err := d.DeleteUser("x"); return err }, ErrNotFound},
		{"delete by ID", func(d *Directory) error { _, err := d.DeleteUser(r.ids["user loner"]); return err }, nil},
		{"delete a project", func(d *Directory) error { _, err := d.DeleteProject("demo"); return err }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Edit(t.Context(), vfs.OS(), r.name, c.change)
			if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
		})
	}
	d, err := r.directory()
	must(t, err)
	if u := d.userByName("demo"); u.DefaultProject != "" || len(u.Projects) != 1 || d.userByName("loner") != nil {
		t.Fatalf("%+v", u)
	}
}
