package e2e

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demo is what "make demo-openstack" starts, while it runs.
type demo struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    io.Reader
	prints string // what it said, up to the end
}

// startDemo starts the demo and waits until it has said what to try.
func startDemo(t *testing.T, port, tmp string) *demo {
	t.Helper()
	// The demo is asked to end, as it has to end what it started.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join("..", "..", "scripts", "demo-openstack.sh"), cairnBinary(t))
	cmd.Env = append(os.Environ(), "CAIRN_DEMO_PORT="+port, "TMPDIR="+tmp)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &demo{t: t, cmd: cmd, out: out}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cancel()
			_ = cmd.Wait() // the test has failed already
		}
	})
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "Interrupt this command") {
			d.prints = said.String()
			return d
		}
	}
	t.Fatalf("the demo ended, and said:\n%s", said.String())
	return nil
}

// variables are the lines of what it said that set some with this prefix for its user.
func (d *demo) variables(prefix string) (lines []string) {
	d.t.Helper()
	user, _, ok := strings.Cut(d.prints, "As administrator")
	for line := range strings.Lines(user) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "export "+prefix) {
			lines = append(lines, line)
		}
	}
	if !ok || len(lines) == 0 {
		d.t.Fatalf("nothing says which variables %s… to set:\n%s", prefix, d.prints)
	}
	return lines
}

// runs pastes a line that it said into a shell where the variables are set.
func (d *demo) runs(variables []string, line string) string {
	d.t.Helper()
	if !strings.Contains(d.prints, "  "+line+"\n") {
		d.t.Fatalf("%q is not what the demo says:\n%s", line, d.prints)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", strings.Join(append(variables, line), "\n"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.t.TempDir(), "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// interrupt ends it as Ctrl-C does.
func (d *demo) interrupt() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.t.Fatal(err)
	}
	rest, rerr := io.ReadAll(d.out)
	err := d.cmd.Wait()
	var exit *exec.ExitError
	if rerr != nil || !errors.As(err, &exit) || exit.ExitCode() != 130 {
		d.t.Errorf("interrupted, the demo ends with %v, %v:\n%s", err, rerr, rest)
	}
}

// What "make demo-openstack" says can be pasted into a shell and works, and nothing is
// left of it when it is interrupted.
func TestDemoOpenStack(t *testing.T) {
	needClients(t)
	addr, tmp := freeAddress(t), t.TempDir()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	d := startDemo(t, port, tmp)
	user := d.variables("OS_")
	if out := d.runs(user, "openstack volume create --size 1 disk"); !strings.Contains(out, "disk") {
		t.Errorf("made:\n%s", out)
	}
	if out := d.runs(user, "cinder list"); !strings.Contains(out, "disk") || !strings.Contains(out, "available") {
		t.Errorf("listed:\n%s", out)
	}
	socket := d.variables("CAIRN_SOCKET=")
	if out := d.runs(socket, d.cmd.Args[1]+" volume list"); len(strings.Split(strings.TrimSpace(out), "\n")) != 2 {
		t.Errorf("the operator lists a header and other than one volume:\n%s", out)
	}
	d.interrupt()
	if l, rerr := os.ReadDir(tmp); rerr != nil || len(l) != 0 {
		t.Errorf("left behind: %v, %v", l, rerr)
	}
	_, path, _ := strings.Cut(socket[0], "=")
	if _, serr := os.Stat(filepath.Dir(path)); !errors.Is(serr, fs.ErrNotExist) {
		t.Errorf("the folder of the sockets %s: %v", filepath.Dir(path), serr)
	}
	var dialer net.Dialer
	if c, derr := dialer.DialContext(t.Context(), "tcp", addr); derr == nil {
		_ = c.Close()
		t.Errorf("somebody answers on %s still", addr)
	}
}
