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

// How large the audit log may grow before it is put aside, in bytes, and how many that
// were put aside are kept: .1 is the newest.
const (
	auditBytes = 64 << 20
	auditKept  = 8
)

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
	most int64 // bytes
	mu   sync.Mutex
	f    *os.File
	size int64
}

func openAudit(state string) (*auditLog, error) {
	a := &auditLog{name: filepath.Join(state, "audit.log"), most: auditBytes}
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
	if a.size > 0 && a.size+int64(len(line)) > a.most {
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
	if err := a.shift(); err != nil {
		return err
	}
	if err := os.Rename(a.name, a.aside(1)); err != nil {
		return fmt.Errorf("put it aside: %w", err)
	}
	old := a.f
	err := a.open()
	if err != nil {
		a.f = old // it goes on there, under its old name if it can
		return errors.Join(err, os.Rename(a.aside(1), a.name))
	}
	return errors.Join(syncDir(filepath.Dir(a.name)), old.Close())
}

// shift makes room for one more that is put aside: those in front of the first number that
// is free move up by one, or all, over the oldest. The oldest moves first, so that nothing
// but that is lost wherever it ends.
func (a *auditLog) shift() error {
	free := 1
	for free < auditKept {
		_, err := os.Lstat(a.aside(free))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("put it aside: %w", err)
		}
		free++
	}
	for n := free; n > 1; n-- {
		if err := os.Rename(a.aside(n-1), a.aside(n)); err != nil {
			return fmt.Errorf("put it aside: %w", err)
		}
	}
	return nil
}

// aside is the name of the log that was put aside n rotations ago.
func (a *auditLog) aside(n int) string { return fmt.Sprintf("%s.%d", a.name, n) }

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
