package identity

import (
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// Users is a users file, read again when it has changed on disk. It is safe for
// concurrent use.
type Users struct {
	file secretFile

	mu    sync.Mutex
	state fileState
	dir   *Directory
}

// OpenUsers reads a users file, which must be there (fs.ErrNotExist), be readable by
// its owner alone and be of a version that this one knows.
func OpenUsers(fsys vfs.FS, name string) (*Users, error) {
	u := &Users{file: usersFile(fsys, name)}
	if _, err := u.Current(); err != nil {
		return nil, err
	}
	return u, nil
}

func usersFile(fsys vfs.FS, name string) secretFile {
	return secretFile{fsys: fsys, name: name, what: "users file", limit: maxFile}
}

// Current returns what the file says now; nobody may change it. A file that cannot be
// read any more is an error, not what it said before: it may have locked somebody out.
func (u *Users) Current() (*Directory, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	last := u.state
	if u.dir == nil {
		last = fileState{}
	}
	data, state, err := u.file.read(last)
	if err == nil && data == nil {
		return u.dir, nil
	}
	u.dir = nil
	if err != nil {
		return nil, err
	}
	dir, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("users file %s: %w", u.file.name, err)
	}
	u.dir, u.state = dir, state
	return dir, nil
}
