package identity

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds, as Keystone's where it has some.
const (
	maxProjectName = 64
	maxUserName    = 255
	maxDescription = 1024
	// MaxPassword is the most bytes that a password has.
	MaxPassword = 4096
)

// ident is the ID of a project or a user, 32 lower-case hexadecimal digits in text.
// The zero value is none.
type ident [16]byte

func (i ident) String() string { return hex.EncodeToString(i[:]) }

func newIdent() (ident, error) {
	var i ident
	if _, err := rand.Read(i[:]); err != nil {
		return i, fmt.Errorf("make an ID: %w", err)
	}
	return i, nil
}

// parseIdent is the inverse of String; ok is false for anything else, and for zero.
func parseIdent(s string) (i ident, ok bool) {
	if len(s) != hex.EncodedLen(len(i)) {
		return ident{}, false
	}
	if _, err := hex.Decode(i[:], []byte(s)); err != nil || i.String() != s {
		return ident{}, false
	}
	return i, i != ident{}
}

// checkName refuses what is no good name of a kind of thing.
func checkName(kind, name string, most int) error {
	switch {
	case name == "":
		return refuse(http.StatusBadRequest, "the name of a %s is empty: give it one", kind)
	case len(name) > most:
		return refuse(http.StatusBadRequest, "the name of a %s has %d bytes, at most %d are allowed", kind, len(name), most)
	case !utf8.ValidString(name):
		return refuse(http.StatusBadRequest, "the name of a %s is no valid UTF-8: %q", kind, name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return refuse(http.StatusBadRequest, "the name of a %s holds a control character: %q", kind, name)
	case strings.TrimSpace(name) != name:
		return refuse(http.StatusBadRequest, "the name of a %s begins or ends with a space: %q", kind, name)
	}
	if _, ok := parseIdent(name); ok {
		return refuse(http.StatusBadRequest, "the name %s looks like an ID: take another one", name)
	}
	return nil
}

func checkDescription(s string) error {
	if len(s) > maxDescription || !utf8.ValidString(s) {
		return refuse(http.StatusBadRequest, "the description is no text of at most %d bytes", maxDescription)
	}
	return nil
}
