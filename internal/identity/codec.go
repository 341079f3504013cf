package identity

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

const (
	fileFormat  = "cairn identity"
	fileVersion = 1
	// maxFile bounds what is read of a users file: tens of thousands of users.
	maxFile = 16 << 20
)

// document is the file, FORMAT.md.
type document struct {
	Format   string     `json:"format"`
	Version  int        `json:"version"`
	Key      []byte     `json:"key"`
	Projects []*Project `json:"projects"`
	Users    []*User    `json:"users"`
}

// encode returns the bytes of the file.
func (d *Directory) encode() ([]byte, error) {
	doc := document{Format: fileFormat, Version: fileVersion, Key: d.key, Projects: d.projects, Users: d.users}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the users file: %w", err)
	}
	if b = append(b, '\n'); len(b) > maxFile {
		return nil, fmt.Errorf("the users file would have %d bytes, at most %d are read: delete users or projects", len(b), maxFile)
	}
	return b, nil
}

// decode is the inverse of encode. It refuses what it does not understand, and what
// does not fit together.
func decode(data []byte) (*Directory, error) {
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("it is no JSON of the right form: %w", err)
	}
	switch {
	case head.Format != fileFormat:
		return nil, fmt.Errorf("it is no users file: its format is %.40q, not %q", head.Format, fileFormat)
	case head.Version > fileVersion:
		return nil, fmt.Errorf("it is of version %d, this cairn knows version %d: it needs a newer cairn", head.Version, fileVersion)
	case head.Version != fileVersion:
		return nil, fmt.Errorf("there is no version %d", head.Version)
	case !utf8.Valid(data):
		return nil, errors.New("it is no valid UTF-8")
	}
	var doc document
	if err := strictly(data, &doc); err != nil {
		return nil, err
	}
	if doc.Projects == nil || doc.Users == nil {
		return nil, errors.New("its projects or users are missing")
	}
	if len(doc.Key) != keySize {
		return nil, fmt.Errorf("its key has %d bytes, not %d", len(doc.Key), keySize)
	}
	d, err := newDirectory(doc.Key)
	if err != nil {
		return nil, err
	}
	d.projects, d.users = doc.Projects, doc.Users
	if err := d.check(); err != nil {
		return nil, err
	}
	d.sort()
	return d, nil
}

// strictly decodes one JSON value and refuses fields that it does not have.
func strictly(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("it does not have the right form: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func (d *Directory) sort() {
	slices.SortFunc(d.projects, func(a, b *Project) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.users, func(a, b *User) int { return cmp.Compare(a.Name, b.Name) })
}

// check refuses what does not fit together.
func (d *Directory) check() error {
	projects := make(map[string]bool) // names and IDs, which cannot be equal
	for _, p := range d.projects {
		if p == nil {
			return errors.New("a project is null")
		}
		if err := errors.Join(checkID(p.ID, projects), checkName("project", p.Name, maxProjectName), checkDescription(p.Description)); err != nil {
			return fmt.Errorf("project %q: %s", p.Name, err.Error())
		}
		if projects[p.Name] {
			return fmt.Errorf("two projects have the name %q", p.Name)
		}
		projects[p.ID], projects[p.Name] = true, true
	}
	users := make(map[string]bool)
	for _, u := range d.users {
		if u == nil {
			return errors.New("a user is null")
		}
		if err := errors.Join(checkID(u.ID, users), checkName("user", u.Name, maxUserName), u.check(projects)); err != nil {
			return fmt.Errorf("user %q: %s", u.Name, err.Error())
		}
		if users[u.Name] {
			return fmt.Errorf("two users have the name %q", u.Name)
		}
		users[u.ID], users[u.Name] = true, true
	}
	return nil
}

func checkID(id string, taken map[string]bool) error {
	if _, ok := parseIdent(id); !ok {
		return fmt.Errorf("its ID %.40q does not have 32 lower-case hexadecimal digits", id)
	}
	if taken[id] {
		return fmt.Errorf("its ID %s is another's as well", id)
	}
	return nil
}

// check refuses a user that does not fit the projects.
func (u *User) check(projects map[string]bool) error {
	known := func(id string) bool { _, ok := parseIdent(id); return ok && projects[id] }
	if u.DefaultProject != "" && !known(u.DefaultProject) {
		return fmt.Errorf("its default project %.40q is not there", u.DefaultProject)
	}
	if u.Projects == nil {
		return errors.New("its projects are missing")
	}
	for id, roles := range u.Projects {
		if !known(id) {
			return fmt.Errorf("its project %.40q is not there", id)
		}
		if len(roles) == 0 {
			return fmt.Errorf("it has no role in project %s", id)
		}
		for i, r := range roles {
			if r != roleMember && r != roleReader || slices.Contains(roles[:i], r) {
				return fmt.Errorf("its roles in project %s are %.80q, not %q, %q or both", id, roles, roleMember, roleReader)
			}
		}
	}
	if _, err := parseHash(u.Password); err != nil {
		return fmt.Errorf("its password hash cannot be used: %w", err)
	}
	return nil
}
