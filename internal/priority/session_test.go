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

// helper is set in a process that lowers itself and says what its session has then, which
// had before what helper is set to.
const helper = "CAIRN_PRIORITY_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helper) == "" {
		os.Exit(m.Run())
	}
	var said bytes.Buffer
	if nice := os.Getenv(helper); nice != "0" {
		if f, err := os.OpenFile(autogroup, os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(nice)
			_ = f.Close()
		}
	}
	Lower(context.Background(), slog.New(slog.NewTextHandler(&said, nil)))
	group, err := os.ReadFile(autogroup)
	if err != nil {
		said.WriteString(err.Error())
	}
	now, err := own()
	if err != nil {
		said.WriteString(err.Error())
	}
	fmt.Printf("%sown %+v\n%s", group, now, said.String())
}

// A process of a session of its own is behind other sessions, with which alone the kernel
// compares it where sessions share the processors out; the session of others stays.
func TestLowerSession(t *testing.T) {
	if _, err := os.Stat(autogroup); errors.Is(err, os.ErrNotExist) {
		needs.Missing(t, "this kernel has no automatic groups: %v", err)
	}
	run := func(own bool, nice string) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), helper+"="+nice)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: own}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := run(true, "0"); !strings.Contains(got, "nice 10\n") {
		t.Errorf("a process with a session of its own has: %s", got)
	}
	if got := run(true, "15"); !strings.Contains(got, "nice 15\n") {
		t.Errorf("a process whose session was further behind has: %s", got)
	}
	was, err := os.ReadFile(autogroup)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(false, "0"); !strings.HasPrefix(got, string(was)) {
		t.Errorf("a process in a session of others has: %s, before: %s", got, was)
	}
}

// A process that is further behind others than it would be put stays there.
func TestLowerNever(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "nice", "-n", "19", needs.Tool(t, "ionice", "util-linux"), "-c", "3", os.Args[0])
	cmd.Env = append(os.Environ(), helper+"=0")
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("own %+v\n", level{nice: 19, ioprio: 3<<13 | 7}); err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v, %s, want %s", err, out, want)
	}
}
