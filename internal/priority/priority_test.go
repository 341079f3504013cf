package priority

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestInFront lowers this process: no other test here may need what it began with.
func TestInFront(t *testing.T) {
	was, err := own()
	if err != nil {
		t.Fatal(err)
	}
	if was == lowered {
		needs.Missing(t, "this process is lowered already")
	}
	var said bytes.Buffer
	Lower(t.Context(), slog.New(slog.NewTextHandler(&said, nil)))
	if left := unlowered(t); len(left) > 0 {
		t.Errorf("threads %v are not lowered", left)
	}
	if got := child(t, func(start func() error) error { return start() }); got != lowered {
		t.Errorf("a process that was just started has %+v, not %+v", got, lowered)
	}
	if strings.Contains(said.String(), "again") {
		needs.Missing(t, "to step forward again takes CAP_SYS_NICE: %s", said.String())
	}
	if said.Len() > 0 {
		t.Errorf("said: %s", said.String())
	}
	if got := child(t, InFront); got != was {
		t.Errorf("a process that was started in front has %+v, not %+v", got, was)
	}
	if left := unlowered(t); len(left) > 0 {
		t.Errorf("threads %v have stayed in front", left)
	}
	if got := child(t, func(start func() error) error { return start() }); got != lowered {
		t.Errorf("behind that, one that was just started has %+v, not %+v", got, lowered)
	}
}

// unlowered lists the threads of this process that are not behind others.
func unlowered(t *testing.T) (ids []string) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := of(id); !errors.Is(err, unix.ESRCH) && (err != nil || got != lowered) {
			ids = append(ids, task.Name())
		}
	}
	return ids
}

// child is the level of a process that begin starts.
func child(t *testing.T, begin func(start func() error) error) level {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = begin(cmd.Start); err != nil {
		t.Fatal(err)
	}
	got, err := of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err = in.Close(); err != nil {
		t.Error(err)
	}
	if err = cmd.Wait(); err != nil {
		t.Error(err)
	}
	return got
}
