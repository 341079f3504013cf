// Package identity says who calls.
//
// An [Authenticator] makes a [Caller] of a request. A [Service] is the built-in
// one: projects and users in a file ([Users], FORMAT.md), tokens that it signs,
// and the part of OpenStack's Identity API v3 that stock clients need to get one.
// [Keystone], [NoAuth], [AdminToken] and [Service.Basic] are the others, and a
// [Chain] asks several.
//
// Tokens and passwords are never logged, and no error holds one.
package identity

import (
	"errors"
	"net/http"
	"strings"
	"time"
)

// Caller is who sent a request, and in which project they act.
type Caller struct {
	UserID      string
	UserName    string
	ProjectID   string // empty: the project that the request's path names (admin token without a project of its own)
	ProjectName string
	Admin       bool
	Roles       []string
	ExpiresAt   time.Time // zero: the credentials have no end
	Keystone    bool      // a Keystone knows them, and their token may be sent there
}

// ReadOnly says whether the caller may look and change nothing: whose only role is reader.
func (c *Caller) ReadOnly() bool {
	if c.Admin || len(c.Roles) == 0 {
		return false
	}
	for _, r := range c.Roles {
		if !strings.EqualFold(r, roleReader) {
			return false
		}
	}
	return true
}

// Authenticator finds out who sent a request. Its errors are of type [*Error]:
// [ErrUnauthorized] when the credentials are wrong, [ErrNoCredentials] as well when
// there are none of the kind it knows, [ErrForbidden] when the caller is known and
// may not come in, [ErrTooMany] when they tried too often, [ErrUnavailable] when
// nobody can tell now. It is safe for concurrent use and does not read the body.
type Authenticator interface {
	Authenticate(r *http.Request) (Caller, error)
}

// Chain asks one authenticator after the other. The first that knows the caller
// decides, be it that it lets them in, forbids it or makes them wait. A token may be
// another's, so that those that do not know it, or cannot tell now, are passed over;
// if none knows it, that somebody could not tell goes before that others refused.
type Chain []Authenticator

var _ Authenticator = Chain(nil)

// Authenticate implements [Authenticator].
func (c Chain) Authenticate(r *http.Request) (Caller, error) {
	var unsure, wrong error
	for _, a := range c {
		caller, err := a.Authenticate(r)
		switch {
		case err == nil:
			return caller, nil
		case errors.Is(err, ErrForbidden), errors.Is(err, ErrTooMany):
			return Caller{}, err
		case errors.Is(err, ErrNoCredentials):
		case errors.Is(err, ErrUnauthorized):
			if wrong == nil {
				wrong = err
			}
		case unsure == nil:
			unsure = err
		}
	}
	switch {
	case unsure != nil:
		return Caller{}, unsure
	case wrong != nil:
		return Caller{}, wrong
	default:
		return Caller{}, noCredentials()
	}
}

// tokenOf is the token of a request, or an error when there is none.
func tokenOf(r *http.Request) (string, error) {
	token := r.Header.Get("X-Auth-Token")
	if token == "" {
		return "", noCredentials()
	}
	return token, nil
}

// printable reports whether a token has nothing but visible ASCII, as all have.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
