package identity

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Parameters of new hashes. 19 MiB and two passes is what OWASP asks for at least;
// more memory would not fit into the agent's budget beside a backup.
const (
	hashMemory  = 19 << 10 // KiB
	hashTime    = 2
	hashThreads = 1
	hashSalt    = 16
	hashSize    = 32
)

// Bounds of the parameters that are believed: a file from elsewhere must not make
// one log-in cost gigabytes or minutes.
const (
	maxHashMemory  = 64 << 10 // KiB
	maxHashTime    = 16
	maxHashThreads = 4
	maxBcryptCost  = 14
	maxHashText    = 512
)

// passwordHash is one that can be compared with.
type passwordHash struct {
	bcrypt []byte // whole text; nil = argon2id

	time, memory uint32
	threads      uint8
	salt, sum    []byte
}

// hashPassword returns the argon2id hash of a password, a PHC string.
func hashPassword(password []byte) (string, error) {
	salt := make([]byte, hashSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make a salt: %w", err)
	}
	h := passwordHash{time: hashTime, memory: hashMemory, threads: hashThreads, salt: salt}
	h.sum = argon2.IDKey(password, salt, h.time, h.memory, h.threads, hashSize)
	return h.String(), nil
}

// String is the inverse of parseHash.
func (h *passwordHash) String() string {
	if h.bcrypt != nil {
		return string(h.bcrypt)
	}
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads, enc.EncodeToString(h.salt), enc.EncodeToString(h.sum))
}

// parseHash understands "$argon2id$v=19$m=M,t=T,p=P$SALT$SUM" and bcrypt's
// "$2b$COST$…". No error repeats the hash.
func parseHash(text string) (*passwordHash, error) {
	if len(text) > maxHashText {
		return nil, errors.New("it is too long")
	}
	if strings.HasPrefix(text, "$2") {
		cost, err := bcrypt.Cost([]byte(text))
		if err != nil {
			return nil, errors.New("it is no bcrypt hash")
		}
		if cost > maxBcryptCost {
			return nil, fmt.Errorf("its bcrypt cost is %d, at most %d is allowed", cost, maxBcryptCost)
		}
		return &passwordHash{bcrypt: []byte(text)}, nil
	}
	part := strings.Split(text, "$")
	if len(part) != 6 || part[0] != "" || part[1] != "argon2id" || part[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, errors.New("it is neither an argon2id hash nor one of bcrypt")
	}
	h := &passwordHash{}
	if _, err := fmt.Sscanf(part[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return nil, errors.New("its argon2id parameters cannot be read")
	}
	if h.memory < 8*uint32(h.threads) || h.memory > maxHashMemory || h.time < 1 || h.time > maxHashTime || h.threads < 1 || h.threads > maxHashThreads {
		return nil, fmt.Errorf("its argon2id parameters m=%d,t=%d,p=%d are out of bounds (at most m=%d,t=%d,p=%d)", h.memory, h.time, h.threads, maxHashMemory, maxHashTime, maxHashThreads)
	}
	var err, err2 error
	h.salt, err = base64.RawStdEncoding.Strict().DecodeString(part[4])
	h.sum, err2 = base64.RawStdEncoding.Strict().DecodeString(part[5])
	if err != nil || err2 != nil || len(h.salt) < 8 || len(h.sum) < 16 {
		return nil, errors.New("its salt or sum cannot be read")
	}
	if h.String() != text { // leading zeros and the like
		return nil, errors.New("its argon2id parameters are not written as usual")
	}
	return h, nil
}

// matches reports whether password is the one. It takes tens of milliseconds.
func (h *passwordHash) matches(password []byte) bool {
	if h.bcrypt != nil {
		// Like everybody, bcrypt looks at 72 bytes.
		return bcrypt.CompareHashAndPassword(h.bcrypt, password) == nil
	}
	sum := argon2.IDKey(password, h.salt, h.time, h.memory, h.threads, uint32(len(h.sum))) //nolint:gosec // At most maxHashText.
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}
