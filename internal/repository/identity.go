package repository

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// ident is a random 128-bit name: of a repository, a store, a session, a
// prune. Its text form is 32 hexadecimal digits.
type ident [16]byte

func newIdent() (ident, error) {
	var id ident
	if _, err := rand.Read(id[:]); err != nil {
		return id, fmt.Errorf("make a random ID: %w", err)
	}
	return id, nil
}

func (id ident) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id ident) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ident) UnmarshalText(text []byte) error {
	out, err := parseIdent(string(text))
	if err != nil {
		return err
	}
	*id = out
	return nil
}

func parseIdent(s string) (ident, error) {
	var id ident
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("%q is not an ID of %d hexadecimal digits: %w", s, 2*len(id), ErrInvalid)
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("%q is not an ID: %w", s, ErrInvalid)
	}
	if id.String() != s {
		return id, fmt.Errorf("%q is not an ID in lower case: %w", s, ErrInvalid)
	}
	return id, nil
}
