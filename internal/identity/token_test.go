package identity

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"
)

func testDirectory(tb testing.TB, key byte) *Directory {
	tb.Helper()
	d, err := newDirectory([]byte(strings.Repeat(string(rune(key)), keySize)))
	must(tb, err)
	return d
}

func TestTokenRoundTrip(t *testing.T) {
	d, stranger := testDirectory(t, 1), testDirectory(t, 2)
	id := func(t *rapid.T, label string) ident {
		return ident(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	}
	rapid.Check(t, func(t *rapid.T) {
		tok := token{
			methods: methods(rapid.Byte().Draw(t, "methods")), user: id(t, "user"), project: id(t, "project"),
			issued: rapid.Int64().Draw(t, "issued"), expires: rapid.Int64().Draw(t, "expires"),
			audit: id(t, "audit"), parent: id(t, "parent"),
			generation: generation(rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "generation")),
		}
		text := d.sign(tok)
		if got, err := d.verify(text); err != nil || got != tok {
			t.Fatalf("%+v %v, want %+v", got, err, tok)
		}
		if _, err := stranger.verify(text); err == nil {
			t.Fatal("another key takes it")
		}
		// Any other character anywhere, and any other length.
		i := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		c := rapid.SampledFrom([]byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.\n")).Draw(t, "with")
		if c != text[i] {
			if _, err := d.verify(text[:i] + string(c) + text[i+1:]); err == nil {
				t.Fatalf("taken with %q at %d", c, i)
			}
		}
		for _, other := range []string{text[:i], text + "A", "\n" + text, text + "\n"} {
			if _, err := d.verify(other); err == nil {
				t.Fatalf("%q is taken", other)
			}
		}
	})
	if tokenText != 163 || tokenSize != 122 {
		t.Fatalf("a token has %d characters of %d bytes; FORMAT.md says 163 of 122", tokenText, tokenSize)
	}
}

// A token of another version is not taken, though it is signed.
func TestTokenVersion(t *testing.T) {
	d := testDirectory(t, 1)
	b, err := base64.RawURLEncoding.DecodeString(d.sign(token{}))
	must(t, err)
	b = b[:tokenPayload]
	b[0] = tokenVersion + 1
	if _, err := d.verify(tokenEncoding.EncodeToString(append(b, mac(d.tokenKey, b)...))); err == nil {
		t.Fatal("taken")
	}
}

func TestHashes(t *testing.T) {
	mine, err := hashPassword([]byte(secret))
	must(t, err)
	again, err := hashPassword([]byte(secret))
	must(t, err)
	if mine == again {
		t.Fatal("two hashes of a password are equal")
	}
	b, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.MinCost)
	must(t, err)
	for _, hash := range []string{
		mine, string(b), "$2b" + string(b)[3:],
		// argon2 -id -t 2 -k 256 -p 1 of the reference implementation.
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
	} {
		h, err := parseHash(hash)
		must(t, err)
		if h.String() != hash {
			t.Errorf("%s is written as %s", hash, h)
		}
		password := secret
		if strings.Contains(hash, "m=256") {
			password = "password"
		}
		if !h.matches([]byte(password)) || h.matches([]byte(password+"x")) || h.matches(nil) {
			t.Errorf("%s is compared wrongly", hash)
		}
	}
	const tail = "$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for _, hash := range []string{
		"", "secret", "$argon2i$v=19$m=256,t=2,p=1" + tail, "$argon2id$v=16$m=256,t=2,p=1" + tail,
		"$argon2id$v=19$m=4294967295,t=2,p=1" + tail, "$argon2id$v=19$m=256,t=0,p=1" + tail, "$argon2id$v=19$m=256,t=2,p=0" + tail,
		"$argon2id$v=19$m=256,t=99,p=1" + tail, "$argon2id$v=19$m=256,t=2,p=300" + tail, "$argon2id$v=19$m=4,t=2,p=1" + tail,
		"$argon2id$v=19$m=256,t=2,p=1$$", "$argon2id$v=19$m=0256,t=2,p=1" + tail, "$argon2id$v=19$m=256,t=2,p=1,x=1" + tail,
		"$2b$31$" + strings.Repeat("a", 53), "$2x", "$2b$04$short", strings.Repeat("x", 10000),
	} {
		if h, err := parseHash(hash); err == nil {
			t.Errorf("%.60s is taken: %+v", hash, h)
		} else if len(hash) > 20 && strings.Contains(err.Error(), hash[20:]) {
			t.Errorf("the error repeats the hash: %v", err)
		}
	}
}

// Somebody who is not there costs what somebody who is costs.
func TestUnknownUserIsHashed(t *testing.T) {
	d := testDirectory(t, 1)
	if d.matches(nil, "nobody", []byte(secret)) {
		t.Fatal("nobody can log in")
	}
	hash, err := hashPassword([]byte(secret))
	must(t, err)
	d.users = []*User{{Name: "demo", Password: hash}}
	spent := func(u *User, name string) time.Duration {
		best := time.Hour
		for range 3 {
			began := time.Now()
			d.matches(u, name, []byte("wrong"))
			best = min(best, time.Since(began))
		}
		return best
	}
	known, unknown := spent(d.users[0], "demo"), spent(nil, "nobody")
	if unknown < known/10 || known < unknown/10 {
		t.Fatalf("a known user takes %v, an unknown one %v", known, unknown)
	}
	if d.matches(nil, "nobody", []byte(secret)) {
		t.Fatal("nobody can log in with the password of somebody")
	}
}
