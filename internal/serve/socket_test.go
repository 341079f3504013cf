package serve_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

func TestSocketModes(t *testing.T) {
	o := options(t)
	o.Group = strconv.Itoa(os.Getgid())
	p := start(t, o)
	v := p.create(t, "db", mib)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}})[0]
	for path, mode := range map[string]fs.FileMode{o.Control: 0o600, v.Socket: 0o660, s.Socket: 0o660} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, st.Mode().Perm(), mode)
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Gid) != os.Getgid() {
			t.Errorf("%s has group %+v", path, sys)
		}
	}
	if st, err := os.Stat(o.State); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("state folder: %v, %v", st.Mode(), err)
	}
	for _, dir := range []string{o.NBDDir, filepath.Dir(o.Control)} {
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if strings.HasPrefix(e.Name(), ".") {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

// deadSocket leaves a socket that nobody listens on, as a crash does.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStaleSockets(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(p.o.NBDDir, "db@0.sock")
	others := filepath.Join(p.o.NBDDir, "else.sock")
	for _, path := range []string{v.Socket, p.o.Control, orphan, others} {
		deadSocket(t, path)
	}
	start(t, p.o)
	closeClient(t, dial(t, v.URI))
	if _, err := os.Lstat(orphan); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket of a snapshot that is gone: %v", err)
	}
	if _, err := os.Lstat(others); err != nil {
		t.Errorf("another program's socket: %v", err)
	}
}

func TestTakenSockets(t *testing.T) {
	p := start(t, options(t))
	live, file := filepath.Join(p.o.NBDDir, "live.sock"), filepath.Join(p.o.NBDDir, "file.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: live})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{"live": "another program listens", "file": "is no socket"} {
		_, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: name, Size: mib})
		if !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), says) {
			t.Errorf("volume %s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(p.o.NBDDir, name+".sock")); err != nil {
			t.Errorf("volume %s: what was there is gone: %v", name, err)
		}
	}
}

func TestLongSocketPaths(t *testing.T) {
	o := options(t)
	o.NBDDir = filepath.Join(o.NBDDir, strings.Repeat("d", 107-len(o.NBDDir)-len("//1234567890@.sock")-36))
	p := start(t, o)
	p.create(t, "1234567890", mib)
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"1234567890"}}) // fits by a hair
	_, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "12345678901", Size: mib})
	if !errors.Is(err, serve.ErrInvalid) || !strings.Contains(err.Error(), "at most 10 characters") {
		t.Errorf("a name too long by one: %v", err)
	}
	name := strings.Repeat("s", 37)
	if _, err := p.CreateSnapshots(t.Context(), serve.CreateSnapshots{Volumes: []string{"1234567890"}, Name: name}); !errors.Is(err, serve.ErrInvalid) || !strings.Contains(err.Error(), "107") {
		t.Errorf("a snapshot's name too long by one: %v", err)
	}

	o = options(t)
	o.Control = filepath.Join(o.State, strings.Repeat("c", 120))
	if err := serve.Run(t.Context(), o, nil); !errors.Is(err, serve.ErrInvalid) {
		t.Errorf("a control socket with a long path: %v", err)
	}
	o = options(t)
	o.Group = "no-such-group"
	if err := serve.Run(t.Context(), o, nil); !errors.Is(err, serve.ErrInvalid) || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("an unknown group: %v", err)
	}
}
