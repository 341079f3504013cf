package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cairn": main})
}

// TestScripts runs the command-line cases. Each has a state folder and sockets
// of its own ($STATE, $RUN), and its processes end with it.
func TestScripts(t *testing.T) {
	ca := tlstest.New(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":     codeCmd,
			"json":     jsonCmd,
			"jsonget":  jsonGetCmd,
			"await":    awaitCmd,
			"awaitnot": awaitNotCmd,
			"random":   randomCmd,
			"patch":    patchCmd,
			"same":     sameCmd,
			"endserve": endServeCmd,
			// pki DIR NAME makes a folder with the certificates of a server and of a client
			// that is called so.
			"pki": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs(args[0])
				ts.Check(os.Mkdir(dir, 0o700))
				ca.WriteServer(dir)
				ca.WriteClient(dir, ca.Client(args[1], time.Now().Add(time.Hour)))
			},
		},
		Condition: func(name string) (bool, error) {
			if name != "fuse" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			_, err := os.Stat("/dev/fuse")
			if err != nil && os.Getenv("CAIRN_CI") == "1" {
				return false, errors.New("needs /dev/fuse")
			}
			return err == nil && os.Geteuid() == 0, nil
		},
	})
}

func setupScript(e *testscript.Env) error {
	// Sockets have short names: a path of one is at most 107 bytes long.
	run, err := os.MkdirTemp("", "cairn")
	if err != nil {
		return err
	}
	state := filepath.Join(e.WorkDir, "state")
	e.Setenv("RUN", run)
	e.Setenv("STATE", state)
	e.Setenv("CAIRN_STATE", state)
	e.Setenv("CAIRN_SOCKET", filepath.Join(run, "agent.sock"))
	e.Setenv("CAIRN_CONTROL", filepath.Join(run, "serve.sock"))
	e.Setenv("CAIRN_NBD_DIR", filepath.Join(run, "nbd"))
	e.Setenv("CAIRN_PASSWORD_FILE", "")
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("TZ", "UTC")
	e.Defer(func() {
		// Whatever a script leaves behind: the data plane outlives its agent.
		for _, f := range []string{"serve.lock", "agent.lock"} {
			if err := endProcess(filepath.Join(state, f)); err != nil {
				panic(err)
			}
		}
		if err := os.RemoveAll(run); err != nil {
			panic(err)
		}
	})
	return nil
}

// endProcess ends the process whose number is in a lock file, if the lock is
// held: the number of a process that is gone may be another's by now.
func endProcess(lock string) error {
	b, err := os.ReadFile(lock)
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 2 {
		return nil
	}
	f, err := os.Open(lock)
	if err != nil {
		return err
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return nil // nobody holds it
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH) // released by its end
}

// codeCmd is "exec" for a program that has to end with a certain exit code:
// code 3 cairn volume show nothing.
func codeCmd(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N program [args...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// parsed is the JSON of the last standard output: an object, or the first of a
// list.
func parsed(ts *testscript.TestScript) map[string]any {
	text := ts.ReadFile("stdout")
	var one map[string]any
	if json.Unmarshal([]byte(text), &one) == nil {
		return one
	}
	var many []map[string]any
	ts.Check(json.Unmarshal([]byte(text), &many))
	if len(many) == 0 {
		ts.Fatalf("the list is empty")
	}
	return many[0]
}

// jsonCmd checks that the last standard output is JSON with these keys, or with
// key=value.
func jsonCmd(ts *testscript.TestScript, _ bool, args []string) {
	object := parsed(ts)
	for _, a := range args {
		key, want, valued := strings.Cut(a, "=")
		v, ok := object[key]
		if !ok {
			ts.Fatalf("no %q in %v", key, object)
		}
		if got := scalar(v); valued && got != want {
			ts.Fatalf("%s is %s, want %s", key, got, want)
		}
	}
}

func scalar(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// jsonGetCmd sets a variable to a value of the last standard output:
// jsonget ID id.
func jsonGetCmd(ts *testscript.TestScript, _ bool, args []string) {
	v, ok := parsed(ts)[args[1]]
	if !ok {
		ts.Fatalf("no %q", args[1])
	}
	ts.Setenv(args[0], scalar(v))
}

// awaitCmd waits until something is there: "agent", "serve", or a file.
func awaitCmd(ts *testscript.TestScript, _ bool, args []string) { await(ts, args[0], true) }

// awaitNotCmd waits until it is not.
func awaitNotCmd(ts *testscript.TestScript, _ bool, args []string) { await(ts, args[0], false) }

func await(ts *testscript.TestScript, what string, want bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	there := func() bool {
		var err error
		switch what {
		case "agent":
			_, err = agent.NewClient(ts.Getenv("CAIRN_SOCKET")).Status(ctx)
		case "pin":
			var pins []agent.Pin
			if pins, err = agent.NewClient(ts.Getenv("CAIRN_SOCKET")).Pins(ctx); len(pins) == 0 && err == nil {
				err = errors.New("none")
			}
		case "serve":
			_, err = serve.NewClient(ts.Getenv("CAIRN_CONTROL")).Status(ctx)
		default:
			_, err = os.Stat(ts.MkAbs(what))
		}
		return err == nil
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for there() != want {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%s: there is %v", what, !want)
		}
	}
}

// endServeCmd stops the data plane.
func endServeCmd(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(endProcess(filepath.Join(ts.Getenv("STATE"), "serve.lock")))
}

// noise is content that does not compress and follows from a seed.
func noise(seed, n int) []byte {
	x := uint64(seed)*0x9E3779B97F4A7C15 + 1
	p := make([]byte, n)
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x)
	}
	return p
}

// randomCmd makes a sparse file: random FILE SIZE SEED [MIB ...] with a MiB of
// noise at each place.
func randomCmd(ts *testscript.TestScript, _ bool, args []string) {
	size, err := parseSize(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o600))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
	patchCmd(ts, false, append([]string{args[0]}, args[2:]...))
}

// patchCmd writes a MiB of noise at each place: patch FILE SEED MIB ...
func patchCmd(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	seed, err := strconv.Atoi(args[1])
	ts.Check(err)
	for _, a := range args[2:] {
		at, err := strconv.Atoi(a)
		ts.Check(err)
		_, err = f.WriteAt(noise(seed+at, 1<<20), int64(at)<<20)
		ts.Check(err)
	}
	ts.Check(f.Close())
}

// sameCmd compares two files of any size, which "cmp" of testscript does not.
func sameCmd(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: same is %v", args[0], args[1], !neg)
	}
}
