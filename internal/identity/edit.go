package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// lockWait is how long an edit waits for another one.
const lockWait = 10 * time.Second

// Edit changes a users file, and makes it if it is not there. One edit runs at a time
// ([ErrConflict] when another one does not end); what it leaves is the old file or the
// new one, whole and durable, whatever happens. When change fails, nothing is changed.
func Edit(ctx context.Context, fsys vfs.FS, name string, change func(*Directory) error) (err error) {
	if err = vfs.MkdirAll(fsys, filepath.Dir(name), 0o700); err != nil {
		return err
	}
	lock, err := fsys.OpenFile(name+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the users file: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err = takeLock(ctx, lock, name); err != nil {
		return err
	}
	d, err := Read(fsys, name)
	if err != nil {
		return err
	}
	if err = change(d); err != nil {
		return err
	}
	d.sort()
	if err = d.check(); err != nil {
		return fmt.Errorf("users file %s is left as it was: %w", name, err)
	}
	data, err := d.encode()
	if err != nil {
		return err
	}
	return vfs.WriteFile(fsys, name, data, 0o600)
}

func takeLock(ctx context.Context, lock vfs.File, name string) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := vfs.Lock(lock)
		if !errors.Is(err, vfs.ErrLocked) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return refuse(http.StatusConflict, "another process is changing users file %s: try again", name)
		}
	}
}

// Read returns what a users file says; one that is not there has nobody in it.
func Read(fsys vfs.FS, name string) (*Directory, error) {
	u, err := OpenUsers(fsys, name)
	switch {
	case err == nil:
		return u.Current()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return newDirectory(key)
}

// CreateProject adds a project with a new ID.
func (d *Directory) CreateProject(name, description string) (Project, error) {
	if err := checkName("project", name, maxProjectName); err != nil {
		return Project{}, err
	}
	if err := checkDescription(description); err != nil {
		return Project{}, err
	}
	if d.projectByName(name) != nil {
		return Project{}, refuse(http.StatusConflict, "there is a project %q already: take another name", name)
	}
	id, err := newIdent()
	if err != nil {
		return Project{}, err
	}
	p := Project{ID: id.String(), Name: name, Description: description}
	d.projects = append(d.projects, &p)
	return p, nil
}

// DeleteProject removes a project, by name or ID, and all roles in it. Its users stay.
func (d *Directory) DeleteProject(ref string) (Project, error) {
	p, err := d.Project(ref)
	if err != nil {
		return Project{}, err
	}
	d.projects = slices.DeleteFunc(d.projects, func(x *Project) bool { return x.ID == p.ID })
	for _, u := range d.users {
		delete(u.Projects, p.ID)
		if u.DefaultProject == p.ID {
			u.DefaultProject = ""
		}
	}
	return p, nil
}

// NewUser describes a user to be.
type NewUser struct {
	Name     string
	Projects []string // names or IDs; the first is the default
	Admin    bool
	Password []byte
}

// CreateUser adds a user with a new ID, who is a member of some projects.
func (d *Directory) CreateUser(n NewUser) (User, error) {
	if err := checkName("user", n.Name, maxUserName); err != nil {
		return User{}, err
	}
	if d.userByName(n.Name) != nil {
		return User{}, refuse(http.StatusConflict, "there is a user %q already: take another name", n.Name)
	}
	u := User{Name: n.Name, Admin: n.Admin, Projects: map[string][]string{}}
	for i, ref := range n.Projects {
		p, err := d.Project(ref)
		if err != nil {
			return User{}, err
		}
		if u.Projects[p.ID] = []string{roleMember}; i == 0 {
			u.DefaultProject = p.ID
		}
	}
	id, err := newIdent()
	if err != nil {
		return User{}, err
	}
	u.ID = id.String()
	if u.Password, err = newPassword(n.Password); err != nil {
		return User{}, err
	}
	d.users = append(d.users, &u)
	return u, nil
}

// DeleteUser removes a user, by name or ID; their tokens end at once.
func (d *Directory) DeleteUser(ref string) (User, error) {
	u, err := d.user(ref)
	if err != nil {
		return User{}, err
	}
	d.users = slices.DeleteFunc(d.users, func(x *User) bool { return x == u })
	return *u, nil
}

// SetPassword gives a user, by name or ID, another password; their tokens end at once.
func (d *Directory) SetPassword(ref string, password []byte) (User, error) {
	u, err := d.user(ref)
	if err != nil {
		return User{}, err
	}
	if u.Password, err = newPassword(password); err != nil {
		return User{}, err
	}
	return *u, nil
}

func newPassword(p []byte) (string, error) {
	if len(p) == 0 || len(p) > MaxPassword {
		return "", refuse(http.StatusBadRequest, "a password has 1 to %d bytes, not %d", MaxPassword, len(p))
	}
	return hashPassword(p)
}
