package identity

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"time"
)

const (
	// maxHashing is how many passwords are hashed at once: each takes 19 MiB and some
	// tens of milliseconds of a processor.
	maxHashing = 2
	// maxWaiting is how many log-ins wait for that, and hashWait how long one does.
	maxWaiting = 64
	hashWait   = 10 * time.Second
)

// hashing bounds what log-ins cost.
type hashing struct {
	slots   chan struct{}
	waiting chan struct{}
}

func newHashing() *hashing {
	return &hashing{slots: make(chan struct{}, maxHashing), waiting: make(chan struct{}, maxWaiting)}
}

// begin waits for a slot, which end gives back.
func (h *hashing) begin(ctx context.Context) error {
	busy := unavailable("Too many log-ins at once: try again in a few seconds.", nil)
	select {
	case h.waiting <- struct{}{}:
	default:
		return busy
	}
	defer func() { <-h.waiting }()
	ctx, cancel := context.WithTimeout(ctx, hashWait)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return busy
	}
}

func (h *hashing) end() { <-h.slots }

// attempt is a try to log in.
type attempt struct {
	name     string // of the user, in the Default domain
	id       string // in place of the name
	password []byte
	addr     netip.Addr
}

// login checks a password. A wrong one and a user who is not there look and cost the
// same: ErrUnauthorized.
func (s *Service) login(ctx context.Context, a attempt) (*Directory, *User, error) {
	d, err := s.directory()
	if err != nil {
		return nil, nil, err
	}
	u := d.userByName(a.name)
	if a.id != "" {
		u = d.userByID(a.id)
	}
	// A user's name and ID are one in the limiter.
	name := a.name
	switch {
	case u != nil:
		name = u.Name
	case a.id != "":
		name = a.id
	}
	if err = s.limit.check(name, a.addr, s.now()); err != nil {
		return nil, nil, err
	}
	if err = s.hashing.begin(ctx); err != nil {
		return nil, nil, err
	}
	defer s.hashing.end()
	// Again, so that many at once are no way around it.
	if err = s.limit.check(name, a.addr, s.now()); err != nil {
		return nil, nil, err
	}
	if !d.matches(u, name, a.password) {
		s.limit.failed(name, a.addr, s.now())
		id := "" // a name that is not there may be a password in the wrong field
		if u != nil {
			id = u.ID
		}
		s.log.LogAttrs(ctx, slog.LevelWarn, "a log-in failed", slog.String("user", id), slog.String("address", a.addr.String()))
		return nil, nil, unauthorized()
	}
	s.limit.succeeded(name, a.addr, s.now())
	return d, u, nil
}

// noUser is compared with where a directory has no user at all.
const noUser = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// matches reports whether a password is a user's. Where u is nil it takes as long as
// for some user: always the same one for a name, so that asking often tells nothing.
func (d *Directory) matches(u *User, name string, password []byte) bool {
	hash := noUser
	switch {
	case u != nil:
		hash = u.Password
	case len(d.users) > 0:
		pick := binary.BigEndian.Uint64(mac(d.passwordKey, []byte("no user "+name)))
		hash = d.users[pick%uint64(len(d.users))].Password
	}
	h, err := parseHash(hash)
	if err != nil { // refused when the file was read
		return false
	}
	return h.matches(password) && u != nil
}
