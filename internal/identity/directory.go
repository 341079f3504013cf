package identity

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"slices"
)

// Roles that a user can have in a project. An administrator has all of them in every
// project, and the role "admin".
const (
	roleAdmin  = "admin"
	roleMember = "member"
	roleReader = "reader"
)

// Project is a tenant.
type Project struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
}

// User is somebody who can log in.
type User struct {
	ID             string              `json:"id"`
	Name           string              `json:"name"`
	Password       string              `json:"password"` // argon2id (PHC) or bcrypt
	DefaultProject string              `json:"default_project"`
	Admin          bool                `json:"admin"`
	Projects       map[string][]string `json:"projects"` // roles by project ID
}

// Roles returns the user's roles in a project; none = it is not theirs.
func (u *User) Roles(project string) []string {
	if u.Admin {
		return []string{roleAdmin, roleMember, roleReader}
	}
	roles := slices.Clone(u.Projects[project])
	if slices.Contains(roles, roleMember) && !slices.Contains(roles, roleReader) {
		roles = append(roles, roleReader)
	}
	return roles
}

// Directory is the content of a users file.
type Directory struct {
	key      []byte
	projects []*Project // sorted by name
	users    []*User    // sorted by name

	tokenKey, passwordKey []byte // derived from key
}

const keySize = 32

// newDirectory returns an empty directory with a key.
func newDirectory(key []byte) (*Directory, error) {
	d := &Directory{key: key, projects: []*Project{}, users: []*User{}}
	for info, k := range map[string]*[]byte{"cairn identity token": &d.tokenKey, "cairn identity password": &d.passwordKey} {
		var err error
		if *k, err = hkdf.Key(sha256.New, key, nil, info, keySize); err != nil {
			return nil, fmt.Errorf("derive a key: %w", err)
		}
	}
	return d, nil
}

// Projects returns all projects, sorted by name.
func (d *Directory) Projects() []Project {
	out := make([]Project, len(d.projects))
	for i, p := range d.projects {
		out[i] = *p
	}
	return out
}

// Users returns all users, sorted by name.
func (d *Directory) Users() []User {
	out := make([]User, len(d.users))
	for i, u := range d.users {
		out[i] = *u
		out[i].Projects = maps.Clone(u.Projects)
	}
	return out
}

// Project finds a project by name or ID.
func (d *Directory) Project(ref string) (Project, error) {
	p := d.projectByID(ref)
	if p == nil {
		p = d.projectByName(ref)
	}
	if p == nil && len(d.projects) == 0 {
		return Project{}, refuse(http.StatusNotFound, "there is no project %q, nor any other here: \"cairn project create NAME\" makes one; those of a Keystone are changed there, as with \"openstack project set\"", ref)
	}
	if p == nil {
		return Project{}, refuse(http.StatusNotFound, "there is no project %q: \"cairn project list\" shows those there are", ref)
	}
	return *p, nil
}

// user finds a user by name or ID.
func (d *Directory) user(ref string) (*User, error) {
	u := d.userByID(ref)
	if u == nil {
		u = d.userByName(ref)
	}
	if u == nil && len(d.users) == 0 {
		return nil, refuse(http.StatusNotFound, "there is no user %q, nor any other here: \"cairn user create NAME\" makes one; those of a Keystone are changed there, as with \"openstack user set\"", ref)
	}
	if u == nil {
		return nil, refuse(http.StatusNotFound, "there is no user %q: \"cairn user list\" shows those there are", ref)
	}
	return u, nil
}

func (d *Directory) projectByID(id string) *Project {
	return find(d.projects, func(p *Project) bool { return p.ID == id })
}

func (d *Directory) projectByName(name string) *Project {
	return find(d.projects, func(p *Project) bool { return p.Name == name })
}

func (d *Directory) userByID(id string) *User {
	return find(d.users, func(u *User) bool { return u.ID == id })
}

func (d *Directory) userByName(name string) *User {
	return find(d.users, func(u *User) bool { return u.Name == name })
}

func find[T any](all []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}
