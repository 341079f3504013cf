package priority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
)

// helper is set in a process that lowers itself and says what its session has then.
const helper = "CAIRN_PRIORITY_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helper) == "" {
		os.Exit(m.Run())
	}
	var said bytes.Buffer
	Lower(context.Background(), slog.New(slog.NewTextHandler(&said, nil)))
	group, err := os.ReadFile(autogroup)
	if err != nil {
		said.WriteString(err.Error())
	}
	fmt.Printf("%s%s", group, said.String())
}

// A process of a session of its own is behind other sessions, with which alone the kernel
// compares it where sessions share the processors out; the session of others stays.
func TestLowerSession(t *testing.T) {
	if _, err := os.Stat(autogroup); errors.Is(err, os.ErrNotExist) {
		needs.Missing(t, "this kernel has no automatic groups: %v", err)
	}
	run := func(own bool) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), helper+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := run(true); !strings.Contains(got, "nice 10\n") {
		t.Errorf("a process with a session of its own has: %s", got)
	}
	was, err := os.ReadFile(autogroup)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(false); !strings.HasPrefix(got, string(was)) {
		t.Errorf("a process in a session of others has: %s, before: %s", got, was)
	}
}
