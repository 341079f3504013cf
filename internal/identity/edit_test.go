package identity

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The power fails at every operation of an edit: the file is the old one or the new
// one, and the new one when the edit was told done.
func TestEditPowerLoss(t *testing.T) {
	const name = "/state/identity.json"
	projects := func(fsys vfs.FS) int {
		d, err := Read(fsys, name)
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

// An edit does not wait for ever for another one.
func TestEditIsLocked(t *testing.T) {
	name := filepath.Join(t.TempDir(), "identity.json")
	err := Edit(t.Context(), vfs.OS(), name, func(*Directory) error {
		for ctxErr, want := range map[error]error{context.DeadlineExceeded: ErrConflict, context.Canceled: context.Canceled} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if errors.Is(ctxErr, context.Canceled) {
				cancel()
			}
			err := Edit(ctx, vfs.OS(), name, func(*Directory) error { t.Error("two edits at once"); return nil })
			cancel()
			if !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		return nil
	})
	must(t, err)
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

// Log-ins and requests go on while the file is edited, each with one state of it.
func TestUseWhileEdited(t *testing.T) {
	r := newRig(t)
	ctx := context.WithoutCancel(t.Context())
	keep := with("X-Auth-Token", r.token(t, "admin", ""))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := r.Authenticate(keep); err != nil {
					t.Errorf("a token: %v", err)
					return
				}
				if _, u, err := r.login(ctx, attempt{name: "demo", password: []byte(secret)}); err != nil || u.Name != "demo" {
					t.Errorf("a log-in: %v", err)
					return
				}
			}
		})
	}
	for i := range 20 {
		r.edit(t, func(d *Directory) error {
			if i%2 == 1 {
				_, err := d.DeleteProject("more")
				return err
			}
			_, err := d.CreateProject("more", "")
			return err
		})
	}
	close(stop)
	wg.Wait()
}
