package quiesce

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// agent answers as qemu-ga does, one client at a time. The real one would freeze the
// machine that runs the tests: TestGuestFrozen of package e2e has it in a guest.
type agent struct {
	t      *testing.T
	socket string
	mu     sync.Mutex
	frozen bool
	calls  []string
	// before is sent ahead of the answer to guest-sync-delimited; answer, if it
	// returns something, in place of the right one.
	before string
	answer func(command string) string
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "qga") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, socket: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			a.serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		<-done
	})
	return a
}

func (a *agent) serve(c net.Conn) {
	for in := bufio.NewReader(c); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var q struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if err := json.Unmarshal(bytes.TrimPrefix(line, []byte{sentinel}), &q); err != nil {
			a.t.Errorf("the agent got %q", line)
			return
		}
		if _, err := c.Write([]byte(a.reply(q.Execute, q.Arguments.ID))); err != nil {
			return
		}
	}
}

func (a *agent) reply(command string, id int64) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, command)
	if a.answer != nil {
		if s := a.answer(command); s != "" {
			return s
		}
	}
	switch command {
	case "guest-sync-delimited":
		return fmt.Sprintf("%s\xff{\"return\": %d}\n", a.before, id)
	case "guest-fsfreeze-status":
		return fmt.Sprintf("{\"return\": %q}\n", map[bool]string{false: "thawed", true: "frozen"}[a.frozen])
	case "guest-fsfreeze-freeze":
		a.frozen = true
		return "{\"return\": 3}\n"
	case "guest-fsfreeze-thaw":
		a.frozen = false
		return "{\"return\": 3}\n"
	}
	return "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command has not been found\"}}\n"
}

func TestGuestAgent(t *testing.T) {
	for name, before := range map[string]string{
		"clean":           "",
		"old answers":     "{\"return\": 3}\n\xff{\"return\": 1}\n",
		"half an answer":  "{\"return\": \xff{\"ret\n",
		"not for a human": strings.Repeat("x", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t)
			a.before = before
			frozen := false
			err := Around(t.Context(), GuestAgent{a.socket}, time.Minute, func(context.Context) error {
				a.mu.Lock()
				defer a.mu.Unlock()
				frozen = a.frozen
				return nil
			})
			if err != nil || !frozen || a.frozen {
				t.Errorf("got %v, frozen meanwhile: %v, afterward: %v", err, frozen, a.frozen)
			}
			want := "[guest-sync-delimited guest-fsfreeze-status guest-fsfreeze-freeze guest-sync-delimited guest-fsfreeze-thaw guest-fsfreeze-status]"
			if got := fmt.Sprint(a.calls); got != want {
				t.Errorf("it was asked for %s", got)
			}
		})
	}
}

func TestGuestAgentFails(t *testing.T) {
	for _, c := range []struct {
		name, command, answer string
		want                  string
		untouched             bool
	}{
		{"no number", "guest-sync-delimited", "\xff{\"return\": \"x\"}\n", "does not answer", true},
		{"too much", "guest-sync-delimited", strings.Repeat("x", maxAnswer+1), "does not answer", true},
		{"blocked", "guest-fsfreeze-status", "{\"error\": {\"desc\": \"Command was disabled\"}}\n", "Command was disabled", true},
		{"frozen", "guest-fsfreeze-status", "{\"return\": \"frozen\"}\n", "is frozen already", true},
		{"null", "guest-fsfreeze-status", "null\n", "neither yes nor no", true},
		{"no JSON", "guest-fsfreeze-freeze", "?\n", "invalid character", false},
		{"nothing to freeze", "guest-fsfreeze-freeze", "{\"return\": 0}\n", "no file system", false},
		{"fails", "guest-fsfreeze-freeze", "{\"error\": {\"desc\": \"failed to freeze /: busy\"}}\n", "freeze /: busy", false},
		{"another type", "guest-fsfreeze-freeze", "{\"return\": {}}\n", "cannot unmarshal", false},
		{"too long", "guest-fsfreeze-freeze", strings.Repeat(" ", maxAnswer+1) + "\n", "more than", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAgent(t)
			first := true
			a.answer = func(command string) string {
				if command != c.command || !first {
					return ""
				}
				first = false
				return c.answer
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if c.command == "guest-sync-delimited" {
				ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
			}
			defer cancel()
			err := GuestAgent{a.socket}.Freeze(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUntouched) != c.untouched {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := (GuestAgent{"/no/such/socket"}).Freeze(t.Context()); !errors.Is(err, ErrUntouched) {
		t.Errorf("without a socket: %v", err)
	}
	if err := (GuestAgent{"/no/such/socket"}).Thaw(t.Context()); err == nil {
		t.Error("thawed without a socket")
	}
}

// TestGuestAgentSilent: of an agent that takes a connection and says nothing it is said so,
// in one line.
func TestGuestAgentSilent(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing was written
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("it took too long"))
	defer cancel()
	err = GuestAgent{l.Addr().String()}.Freeze(ctx)
	if !errors.Is(err, ErrUntouched) || !strings.Contains(err.Error(), "it took too long") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// TestThawStays: a guest that is still frozen after a thaw is told.
func TestThawStays(t *testing.T) {
	a := newAgent(t)
	a.answer = func(command string) string {
		if command == "guest-fsfreeze-status" {
			return "{\"return\": \"frozen\"}\n"
		}
		return ""
	}
	if err := (GuestAgent{a.socket}).Thaw(t.Context()); err == nil || !strings.Contains(err.Error(), `"frozen" after a thaw`) {
		t.Errorf("got %v", err)
	}
}
