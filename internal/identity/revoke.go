package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	revokedFormat  = "cairn revoked tokens"
	revokedVersion = 1
	// maxRevoked is how many tokens of one user are remembered.
	maxRevoked = 64
	// maxRevokedFile bounds what is read of the file.
	maxRevokedFile = 64 << 20
)

// revocations are the tokens that were given back, kept in a file beside the users
// file (FORMAT.md) so that they stay given back when the agent is started again.
type revocations struct {
	fsys vfs.FS
	name string

	mu    sync.Mutex
	users map[string]*revoked
}

// revoked is what a user has given back. Times are Unix microseconds.
type revoked struct {
	Before int64            `json:"before"` // no token issued then or earlier counts
	Until  int64            `json:"until"`  // when the last of those has expired
	Tokens map[string]int64 `json:"tokens"` // audit ID -> expires
}

type revokedDocument struct {
	Format  string              `json:"format"`
	Version int                 `json:"version"`
	Users   map[string]*revoked `json:"users"`
}

func openRevocations(fsys vfs.FS, usersName string) (*revocations, error) {
	r := &revocations{fsys: fsys, name: strings.TrimSuffix(usersName, filepath.Ext(usersName)) + "-revoked.json", users: map[string]*revoked{}}
	file := secretFile{fsys: fsys, name: r.name, what: "file of revoked tokens", limit: maxRevokedFile}
	data, _, err := file.read(fileState{})
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := decodeRevoked(data)
	if err != nil {
		return nil, fmt.Errorf("file of revoked tokens %s: %w", r.name, err)
	}
	r.users = doc.Users
	return r, nil
}

func decodeRevoked(data []byte) (doc revokedDocument, err error) {
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err = json.Unmarshal(data, &head); err != nil {
		return doc, fmt.Errorf("it is no JSON of the right form: %w", err)
	}
	switch {
	case head.Format != revokedFormat:
		return doc, fmt.Errorf("its format is %.40q, not %q", head.Format, revokedFormat)
	case head.Version > revokedVersion:
		return doc, fmt.Errorf("it is of version %d, this cairn knows version %d: it needs a newer cairn", head.Version, revokedVersion)
	case head.Version != revokedVersion:
		return doc, fmt.Errorf("there is no version %d", head.Version)
	}
	if err = strictly(data, &doc); err != nil {
		return doc, err
	}
	for id, u := range doc.Users {
		if u == nil || u.Tokens == nil {
			return doc, fmt.Errorf("its user %.40q is incomplete", id)
		}
	}
	if doc.Users == nil {
		doc.Users = map[string]*revoked{}
	}
	return doc, nil
}

// holds reports whether a token was given back.
func (r *revocations) holds(t token) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[t.user.String()]
	if u == nil {
		return false
	}
	_, named := u.Tokens[auditText(t.audit)]
	return named || t.issued <= u.Before
}

// add makes a token count no more, durably: when it returns an error, that holds until
// the agent is started again, and perhaps behind that.
func (r *revocations) add(t token, now int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[t.user.String()]
	if u == nil {
		u = &revoked{Tokens: map[string]int64{}}
		r.users[t.user.String()] = u
	}
	r.expire(now)
	r.users[t.user.String()] = u // expire drops it when it is empty
	if u.Tokens[auditText(t.audit)] = t.expires; len(u.Tokens) > maxRevoked {
		// No token that was issued until now lives longer.
		u.Before, u.Until = now, now+tokenLifetime.Microseconds()
		clear(u.Tokens)
	}
	data, err := json.Marshal(revokedDocument{revokedFormat, revokedVersion, r.users})
	if err != nil {
		return fmt.Errorf("encode the file of revoked tokens: %w", err)
	}
	return vfs.WriteFile(r.fsys, r.name, append(data, '\n'), 0o600)
}

// expire drops what has expired.
func (r *revocations) expire(now int64) {
	for id, u := range r.users {
		for audit, expires := range u.Tokens {
			if expires < now {
				delete(u.Tokens, audit)
			}
		}
		if u.Until < now {
			u.Before, u.Until = 0, 0
		}
		if u.Before == 0 && len(u.Tokens) == 0 {
			delete(r.users, id)
		}
	}
}
