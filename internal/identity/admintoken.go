package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"sync"

	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	minAdminToken = 16
	maxAdminToken = 4096
)

// AdminToken is an [Authenticator] for one token that an operator wrote into a file:
// "openstack --os-auth-type admin_token --os-token T". Whoever has it is administrator,
// until the file says another one.
type AdminToken struct {
	file    secretFile
	project Project

	mu    sync.Mutex
	state fileState
	sum   [sha256.Size]byte
	read  bool
}

var _ Authenticator = (*AdminToken)(nil)

// NewAdminToken reads the file, which only its owner may read and which has 16 bytes or
// more. project is what the caller acts in; without one it is what the path of the
// request names.
func NewAdminToken(fsys vfs.FS, name string, project Project) (*AdminToken, error) {
	a := &AdminToken{file: secretFile{fsys: fsys, name: name, what: "file of the admin token", limit: maxAdminToken}, project: project}
	if _, err := a.current(); err != nil {
		return nil, err
	}
	return a, nil
}

// current is the digest of what the file says now.
func (a *AdminToken) current() ([sha256.Size]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.state
	if !a.read {
		last = fileState{}
	}
	data, state, err := a.file.read(last)
	if err == nil && data == nil {
		return a.sum, nil
	}
	a.read = false
	if err != nil {
		return a.sum, err
	}
	data = bytes.TrimRight(data, "\r\n")
	if len(data) < minAdminToken || !printable(string(data)) {
		return a.sum, fmt.Errorf("file of the admin token %s does not hold one word of %d or more printable characters: write one with \"(umask 077; openssl rand -hex 32 > %s)\"", a.file.name, minAdminToken, a.file.name)
	}
	a.sum, a.state, a.read = sha256.Sum256(data), state, true
	return a.sum, nil
}

// Authenticate implements [Authenticator].
func (a *AdminToken) Authenticate(r *http.Request) (Caller, error) {
	text, err := tokenOf(r)
	if err != nil {
		return Caller{}, err
	}
	if len(text) > maxAdminToken {
		return Caller{}, unauthorized()
	}
	want, err := a.current()
	if err != nil {
		return Caller{}, unavailable("The admin token of this service cannot be read: its operator has to look at it.", err)
	}
	if got := sha256.Sum256([]byte(text)); subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return Caller{}, unauthorized()
	}
	return Caller{
		UserID: "admin_token", UserName: "admin_token", ProjectID: a.project.ID, ProjectName: a.project.Name,
		Admin: true, Roles: []string{roleAdmin},
	}, nil
}
