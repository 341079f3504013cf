package identity

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	basicEntries = 1024
	basicFor     = 5 * time.Minute
)

// basic takes a name and a password with each request.
type basic struct {
	s   *Service
	key []byte // of this process

	mu   sync.Mutex
	seen *recent[[32]byte, time.Time] // proofs of what was right -> until when they count
}

// Basic returns an [Authenticator] that takes a user's name and password in the
// Authorization header ("openstack --os-auth-type http_basic"), for the user's default
// project. A password that was right is not hashed again for five minutes, unless it is
// changed.
func (s *Service) Basic() (Authenticator, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &basic{s: s, key: key, seen: newRecent[[32]byte, time.Time](basicEntries)}, nil
}

// Authenticate implements [Authenticator].
func (b *basic) Authenticate(r *http.Request) (Caller, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return Caller{}, noCredentials()
	}
	if len(name) > maxUserName || len(password) > MaxPassword {
		return Caller{}, unauthorized()
	}
	d, u, err := b.login(r, name, password)
	if err != nil {
		return Caller{}, err
	}
	p := d.projectByID(u.DefaultProject)
	if p == nil || len(u.Roles(p.ID)) == 0 {
		return Caller{}, refuse(http.StatusForbidden, "User %s has no default project, which a request with name and password acts in: log in for a token of a project.", u.Name)
	}
	return callerOf(u, p, time.Time{}), nil
}

func (b *basic) login(r *http.Request, name, password string) (*Directory, *User, error) {
	addr, now := source(r), b.s.now()
	d, err := b.s.directory()
	if err != nil {
		return nil, nil, err
	}
	if u := d.userByName(name); u != nil && b.knows(b.proof(u, password), now) {
		// What is remembered must not answer guesses faster than they are allowed.
		if err = b.s.limit.check(name, addr, now); err != nil {
			return nil, nil, err
		}
		return d, u, nil
	}
	d, u, err := b.s.login(r.Context(), attempt{name: name, password: []byte(password), addr: addr})
	if err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen.put(b.proof(u, password), now.Add(basicFor))
	return d, u, nil
}

func (b *basic) knows(proof [32]byte, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.seen.get(proof)
	return ok && now.Before(until)
}

// proof stands for a right password. It is another one when the password was changed.
func (b *basic) proof(u *User, password string) [32]byte {
	return [32]byte(mac(b.key, []byte(u.ID+"\x00"+u.Password+"\x00"+password)))
}
