package serve_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// otherProcess connects to uri from another process and returns what it said,
// and how to end it.
func otherProcess(t *testing.T, uri string) (said string, end func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+uri)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("other process: %v", err)
		}
	}
}

func TestOneWriter(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	c := dial(t, v.URI)
	again := dial(t, nbd.URI(v.Socket, "")) // the same process may have more connections

	said, end := otherProcess(t, v.URI)
	end()
	for _, want := range []string{"refused", fmt.Sprintf("process %d", os.Getpid()), "db@ro"} {
		if !strings.Contains(said, want) {
			t.Errorf("a second writer was told %q, which does not say %q", said, want)
		}
	}
	said, end = otherProcess(t, nbd.URI(v.Socket, "db@ro"))
	if said != "admitted" {
		t.Errorf("a reader was told %q", said)
	}
	got, err := p.Volume(t.Context(), "db")
	if err != nil || got.Writers != 2 || got.Readers != 1 || !strings.Contains(got.Writer, strconv.Itoa(os.Getpid())) {
		t.Errorf("volume %+v, %v; want 2 writers of this process, 1 reader", got, err)
	}
	end()
	closeClient(t, again)
	closeClient(t, c)

	// A writer that has just left does not keep the next one out.
	said, end = otherProcess(t, v.URI)
	if said != "admitted" {
		t.Errorf("the next writer was told %q", said)
	}
	if _, err := nbd.Dial(t.Context(), v.URI, nbd.ClientOptions{}); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("second writer from here: %v", err)
	}
	end()
}

func TestReadOnlyDoor(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	c := dial(t, nbd.URI(v.Socket, "db@ro"))
	if !c.ReadOnly() {
		t.Error("db@ro is writable")
	}
	if err := c.WriteAt(t.Context(), []byte{1}, 0, false); err == nil {
		t.Error("db@ro took a write")
	}
	if got, err := p.Volume(t.Context(), "db"); err != nil || got.InUse || got.Status != serve.StatusAvailable || got.Readers != 1 {
		t.Errorf("read over db@ro: %+v, %v", got, err)
	}
	// A reader is in nobody's way, but for deletion.
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})
	if err := p.RevertVolume(t.Context(), "s"); err != nil {
		t.Errorf("revert: %v", err)
	}
	if err := p.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Errorf("delete snapshot: %v", err)
	}
	if err := p.DeleteVolume(t.Context(), "db"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("delete volume: %v, want busy", err)
	}
}

// However many connections readers open, there is room for who writes.
func TestReadersLeaveRoom(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	ro := nbd.URI(v.Socket, "db@ro")
	many := func(uri string, conns int) (*nbd.Client, error) {
		return nbd.Dial(t.Context(), uri, nbd.ClientOptions{Conns: conns})
	}
	readers, err := many(ro, 48)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = many(ro, 1); err == nil || !strings.Contains(err.Error(), "kept for who writes: end some, or read a snapshot") {
		t.Errorf("one reader more: %v", err)
	}
	writer, err := many(v.URI, 15)
	if err != nil {
		t.Fatal(err)
	}
	write(t, writer, []byte("x"), 0)
	closeClient(t, writer)
	writer = dial(t, v.URI) // again
	closeClient(t, readers)
	closeClient(t, dial(t, ro))
	closeClient(t, writer)

	// Where nobody writes all may read.
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}})[0]
	if readers, err = many(s.URI, 64); err != nil {
		t.Fatal(err)
	}
	closeClient(t, readers)
}

func TestExportsOfSockets(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	p.create(t, "other", mib)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}})[0]
	for _, tt := range []struct {
		socket string
		want   []string
	}{
		{v.Socket, []string{"db", "db@ro"}},
		{s.Socket, []string{"db@" + s.ID}},
	} {
		es, err := nbd.List(t.Context(), nbd.URI(tt.socket, ""))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range es {
			names = append(names, e.Name)
		}
		if strings.Join(names, " ") != strings.Join(tt.want, " ") {
			t.Errorf("%s lists %v, want %v", tt.socket, names, tt.want)
		}
	}
	for _, name := range []string{"other", "db@no", "../db", s.ID} {
		if _, err := nbd.Dial(t.Context(), nbd.URI(v.Socket, name), nbd.ClientOptions{}); err == nil {
			t.Errorf("export %q was served on the socket of db", name)
		}
	}
}
