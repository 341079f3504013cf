package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// auditKept is how large the audit log may grow before it is put aside, in bytes. One
// that was put aside is kept until the next is.
const auditKept = 64 << 20

// auditEntry is one line of the audit log: a change that somebody asked for, and what
// became of it.
type auditEntry struct {
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"` // a user's ID, or "operator" and its uid
	User    string    `json:"user,omitempty"`
	Project string    `json:"project,omitempty"`
	Admin   bool      `json:"admin,omitempty"`
	Request string    `json:"request_id"`
	Action  string    `json:"action"`
	Object  string    `json:"object,omitempty"`
	Result  int       `json:"result"` // status of HTTP
	Error   string    `json:"error,omitempty"`
}

// auditLog appends to STATE/audit.log, one JSON object a line.
type auditLog struct {
	name string
	mu   sync.Mutex
	f    *os.File
	size int64
}

func openAudit(state string) (*auditLog, error) {
	a := &auditLog{name: filepath.Join(state, "audit.log")}
	if err := a.open(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *auditLog) open() error {
	f, err := os.OpenFile(a.name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open the audit log: %w", err), f.Close())
	}
	a.f, a.size = f, fi.Size()
	return nil
}

// add appends an entry and has it on stable storage when it returns. It may be there
// also with an error: the log grows beyond what it may then.
func (a *auditLog) add(e auditEntry) error {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.f == nil {
		return fmt.Errorf("audit log: %w", fs.ErrClosed)
	}
	var full error
	if a.size+int64(len(line)) > auditKept {
		full = a.rotate() // a log that grows on is better than none
	}
	n, err := a.f.Write(append(line, '\n')) // one write: lines of two processes do not mix
	a.size += int64(n)
	if err == nil {
		err = a.f.Sync()
	}
	if err = errors.Join(full, err); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// rotate puts the log aside and begins another; a.mu is held.
func (a *auditLog) rotate() error {
	if err := os.Rename(a.name, a.name+".1"); err != nil {
		return fmt.Errorf("put it aside: %w", err)
	}
	old := a.f
	err := a.open()
	if err != nil {
		a.f = old // it goes on there, under its old name if it can
		return errors.Join(err, os.Rename(a.name+".1", a.name))
	}
	return old.Close()
}

func (a *auditLog) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.f
	a.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}
