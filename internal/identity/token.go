package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Layout of a token before base64url, FORMAT.md.
const (
	tokenVersion = 1
	tokenPayload = 2 + 16 + 16 + 8 + 8 + 16 + 16 + 8
	tokenSize    = tokenPayload + sha256.Size
)

var (
	tokenEncoding = base64.RawURLEncoding.Strict()
	tokenText     = tokenEncoding.EncodedLen(tokenSize)
)

// errToken says that a token is none of ours; it does not say more.
var errToken = errors.New("the token is not genuine")

// methods is how a token was got, as bits.
type methods byte

const (
	methodPassword methods = 1 << iota
	methodToken
)

func (m methods) names() []string {
	out := []string{}
	if m&methodToken != 0 {
		out = append(out, "token")
	}
	if m&methodPassword != 0 {
		out = append(out, "password")
	}
	return out
}

// generation stands for one password of one user: it is another one after a change.
type generation [8]byte

// token is what a token says.
type token struct {
	methods         methods
	user, project   ident // project zero = unscoped
	issued, expires int64 // Unix microseconds
	audit, parent   ident // parent zero = it was not got by another token
	generation      generation
}

func newAudit() (a ident, err error) {
	if _, err = rand.Read(a[:]); err != nil {
		return a, fmt.Errorf("make a token: %w", err)
	}
	return a, nil
}

func auditText(a ident) string { return tokenEncoding.EncodeToString(a[:]) }

func micros(t int64) time.Time { return time.UnixMicro(t).UTC() }

// sign returns the text of a token.
func (d *Directory) sign(t token) string {
	b := make([]byte, 0, tokenSize)
	b = append(b, tokenVersion, byte(t.methods))
	b = append(b, t.user[:]...)
	b = append(b, t.project[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.issued))  //nolint:gosec // Two's complement, and back.
	b = binary.BigEndian.AppendUint64(b, uint64(t.expires)) //nolint:gosec // Likewise.
	b = append(b, t.audit[:]...)
	b = append(b, t.parent[:]...)
	b = append(b, t.generation[:]...)
	return tokenEncoding.EncodeToString(append(b, mac(d.tokenKey, b)...))
}

// verify is the inverse of sign: it takes what sign made with the same key, and
// nothing else. Whether the token still counts is for others to say.
func (d *Directory) verify(text string) (token, error) {
	var t token
	if len(text) != tokenText {
		return t, errToken
	}
	b, err := tokenEncoding.DecodeString(text)
	if err != nil || len(b) != tokenSize {
		return t, errToken
	}
	if !hmac.Equal(mac(d.tokenKey, b[:tokenPayload]), b[tokenPayload:]) || b[0] != tokenVersion {
		return t, errToken
	}
	t.methods, b = methods(b[1]), b[2:]
	b = b[copy(t.user[:], b):]
	b = b[copy(t.project[:], b):]
	t.issued = int64(binary.BigEndian.Uint64(b))      //nolint:gosec // Two's complement, and back.
	t.expires = int64(binary.BigEndian.Uint64(b[8:])) //nolint:gosec // Likewise.
	b = b[16:]
	b = b[copy(t.audit[:], b):]
	b = b[copy(t.parent[:], b):]
	copy(t.generation[:], b)
	return t, nil
}

// generationOf is that of a user's present password.
func (d *Directory) generationOf(u *User) generation {
	return generation(mac(d.passwordKey, []byte(u.ID+u.Password))[:len(generation{})])
}

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}
