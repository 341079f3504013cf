package serve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/cairnbackup/cairn/nbd"
)

// grace is how long a request that needs a door to be empty waits for
// connections to end: a client that has hung up is noticed only when the
// server next reads from its socket.
const grace = time.Second

// access is the rule of who may use one volume or snapshot, and the count of
// who does. A volume has one writer identity at a time, which may have
// several connections; readers are not limited here. Its zero value is open
// to all.
type access struct {
	mu      sync.Mutex
	shut    string // not empty: nobody may enter, and why
	noWrite string // not empty: nobody may enter to write, and why
	writer  string // identity of the writers
	holder  string // the same for people
	writers int
	readers int
	sharing int           // of the readers, those on a socket that is also the writers'
	changed chan struct{} // closed and replaced when a connection ends
}

// enterWrite admits a connection to the read-write door of the named volume,
// or says why not. If another writer is inside, it waits a moment for that one
// to leave. The caller calls leaveWrite once for each nil.
func (a *access) enterWrite(ctx context.Context, name, id, holder string) error {
	var refused error
	_, err := a.wait(ctx, func(use) bool {
		switch {
		case a.shut != "":
			refused = &Error{Code: CodeBusy, Text: a.shut}
		case a.noWrite != "":
			refused = &Error{Code: CodeBusy, Text: a.noWrite}
		case a.writers > 0 && a.writer != id:
			refused = refuse(CodeBusy, "volume %s is in use by %s, and it has one writer at a time: connect to export %s%s to read it", name, a.holder, name, readOnlyDoor)
			return false
		default:
			a.writer, a.holder = id, holder
			a.writers++
			refused = nil
		}
		return true
	})
	if err != nil {
		return err
	}
	return refused
}

func (a *access) leaveWrite() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.writers--
	a.left()
}

// enterRead admits a reader, or says why not; one that shares a socket with writers
// only while those have room left. The caller calls leave once.
func (a *access) enterRead(shares bool) (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.shut != "":
		return nil, &Error{Code: CodeBusy, Text: a.shut}
	case shares && a.sharing >= doorReaders:
		return nil, refuse(CodeBusy, "%d connections read this volume over its socket, and the others there are kept for who writes: end some, or read a snapshot, which has a socket of its own", a.sharing)
	}
	n := 0
	if shares {
		n = 1
	}
	a.readers++
	a.sharing += n
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.readers--
		a.sharing -= n
		a.left()
	}, nil
}

// left wakes those who wait for connections to end. a.mu is held.
func (a *access) left() {
	if a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// use is a count of connections at one moment.
type use struct {
	writers, readers int
	holder           string // empty without writers
}

func (a *access) use() use {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.useLocked()
}

func (a *access) useLocked() use {
	u := use{writers: a.writers, readers: a.readers}
	if a.writers > 0 {
		u.holder = a.holder
	}
	return u
}

// close shuts the door with a reason and waits a moment for those inside to
// leave. If they do not, the door is open again and what remains is
// returned. reopen opens it again.
func (a *access) close(ctx context.Context, reason string) (use, error) {
	a.mu.Lock()
	a.shut = reason
	a.mu.Unlock()
	u, err := a.wait(ctx, func(u use) bool { return u.writers == 0 && u.readers == 0 })
	if err != nil || u.writers > 0 || u.readers > 0 {
		a.reopen()
	}
	return u, err
}

// closeWrite is close for writers alone.
func (a *access) closeWrite(ctx context.Context, reason string) (use, error) {
	a.mu.Lock()
	a.noWrite = reason
	a.mu.Unlock()
	u, err := a.wait(ctx, func(u use) bool { return u.writers == 0 })
	if err != nil || u.writers > 0 {
		a.reopen()
	}
	return u, err
}

// reopen ends close and closeWrite.
func (a *access) reopen() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shut, a.noWrite = "", ""
}

// wait waits until done, which is called with a.mu held, says true or the
// grace is over, and returns the last count either way. An error is the
// context's.
func (a *access) wait(ctx context.Context, done func(use) bool) (use, error) {
	t := time.NewTimer(grace)
	defer t.Stop()
	for {
		a.mu.Lock()
		u := a.useLocked()
		ok := done(u)
		if a.changed == nil {
			a.changed = make(chan struct{})
		}
		changed := a.changed
		a.mu.Unlock()
		if ok {
			return u, nil
		}
		select {
		case <-changed:
		case <-t.C:
			return u, nil
		case <-ctx.Done():
			return u, fmt.Errorf("wait for connections to end: %w", context.Cause(ctx))
		}
	}
}

// identity names the program behind a connection, for the one-writer rule and
// for people. A process in a PID namespace that we cannot see has PID 0 for
// us; each of its connections is somebody else then, because two such
// processes cannot be told apart. Over TCP it is the certificate and the address
// that count: two hosts that share a certificate are two, so that they do not
// write to one volume at once, while all programs of a host with one certificate
// are the same, because nothing tells its connections apart; and a host that
// connects again is let in although its old connection seems to be there still.
func identity(p nbd.Peer, nth uint64) (id, holder string) {
	switch {
	case p.CommonName != "":
		at := hostOf(p.Addr)
		return "cn:" + p.CommonName + "@" + at, fmt.Sprintf("%q at %s", clip(p.CommonName), clip(at))
	case p.PID > 0:
		return fmt.Sprintf("pid:%d", p.PID), processName(p.PID)
	case p.Addr != "" && p.Addr != "@":
		return "addr:" + p.Addr, clip(p.Addr)
	default:
		return fmt.Sprintf("conn:%d", nth), "a process that is not visible here (in another container?)"
	}
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// processName is "process 4711 (qemu-system-x86)".
func processName(pid int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	// A process chooses its own name: nothing of it may reach a terminal.
	name := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != '(' && r != ')' {
			return r
		}
		return -1
	}, string(bytes.TrimSpace(b)))
	return fmt.Sprintf("process %d (%s)", pid, name)
}

// empty is close for those who need nobody inside: it refuses, naming who is,
// and leaves the door open then.
func (a *access) empty(ctx context.Context, reason, what string) error {
	u, err := a.close(ctx, reason)
	switch {
	case err != nil:
		return err
	case u.writers > 0:
		return refuse(CodeBusy, "%s is in use by %s: stop that first", what, u.holder)
	case u.readers > 0:
		return refuse(CodeBusy, "%s is being read over %d connections: end them first", what, u.readers)
	}
	return nil
}
