package quiesce

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCommand(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	c := Command{Path: script(t, `echo "$1 $2" >> `+log+"\n"), Volume: "vol 1"}
	if err := Around(t.Context(), c, time.Minute, func(context.Context) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != "freeze vol 1\nthaw vol 1\n" {
		t.Errorf("it was called as %q, %v", got, err)
	}
}

// TestCommandSession: the agent's session is behind others (package priority), and it with
// that while a guest is frozen, unless it has its own.
func TestCommandSession(t *testing.T) {
	c := Command{Path: script(t, `read -r pid comm state parent group session rest < /proc/$$/stat; echo "session $session of $$"; [ "$session" = $$ ]`), Volume: "v"}
	if err := c.Freeze(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCommandFails(t *testing.T) {
	for _, c := range []struct{ name, text, want, not string }{
		{"status", "echo 'no   such\nguest' >&2; exit 3", "exit status 3; it said: no such guest", ""},
		{"silent", "exit 3", "exit status 3", "said"},
		{"much", "head -c 100000 /dev/zero | tr '\\0' x; echo END; exit 1", "xxxEND", strings.Repeat("x", maxOutput+1)},
		{"no text", `printf '\377'; exit 1`, "it said: ?", "\xff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Command{Path: script(t, c.text), Volume: "v"}.Freeze(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || c.not != "" && strings.Contains(err.Error(), c.not) || errors.Is(err, ErrUntouched) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := (Command{Path: "/no/such/hook", Volume: "v"}).Freeze(t.Context()); !errors.Is(err, ErrUntouched) {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestCommandLimit: it and what it has started are killed.
func TestCommandLimit(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	c := Command{Path: script(t, "sleep 1000 & echo $! > "+pid+"\nmv "+pid+" "+pid+".done\nwait\n"), Volume: "v", Limit: time.Second}
	err := c.Freeze(t.Context())
	if err == nil || !strings.Contains(err.Error(), "longer than 1s") {
		t.Errorf("got %v", err)
	}
	text, err := os.ReadFile(pid + ".done")
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); syscall.Kill(child, 0) == nil && !zombie(child); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what it had started runs on")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Freeze(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has gone: %v", err)
	}
}

// zombie reports whether a process has ended, and nobody has asked.
func zombie(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// TestCommandLeavesSomething: it has ended; what it left holds its output open.
func TestCommandLeavesSomething(t *testing.T) {
	if err := (Command{Path: script(t, "sleep 3 &\nexit 0\n"), Volume: "v"}).Thaw(t.Context()); err != nil {
		t.Error(err)
	}
}
