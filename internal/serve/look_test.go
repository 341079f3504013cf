package serve

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/nbd"
)

// slowFS makes who reads the record of changes wait.
type slowFS struct {
	vfs.FS
	reads chan chan struct{} // nil: nobody waits
}

func (s *slowFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := s.FS.OpenFile(name, flag, perm)
	if err == nil && strings.HasPrefix(filepath.Base(name), "segment-") && s.reads != nil {
		f = slowFile{f, s.reads}
	}
	return f, err
}

type slowFile struct {
	vfs.File
	reads chan chan struct{}
}

func (f slowFile) ReadAt(p []byte, off int64) (int, error) {
	goOn := make(chan struct{})
	f.reads <- goOn
	<-goOn
	return f.File.ReadAt(p, off)
}

// TestShowHoldsNobodyUp: while what changed in a volume is read from a slow disk,
// lists, handshakes and snapshots go on; only its close waits.
func TestShowHoldsNobodyUp(t *testing.T) {
	slow := &slowFS{FS: vfs.OS()}
	p := testPlane(t, slow)
	_, err := p.createVolume(t.Context(), CreateVolume{Name: "vol", Size: 1 << 20})
	must(t, err)
	snapshot := func(checkpoint string) {
		s, failed := p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"vol"}, Temporary: true, Checkpoints: []string{checkpoint}})
		must(t, failed)
		must(t, p.deleteSnapshot(t.Context(), s[0].ID))
	}
	e, err := p.find("vol")
	must(t, err)
	for _, c := range []string{"a", "b"} {
		snapshot(c)
		_, err = e.vol.WriteAt(make([]byte, 512), 0)
		must(t, err)
	}

	slow.reads = make(chan chan struct{})
	shown := make(chan Volume, 1)
	go func() { shown <- p.describe(e, changes) }()
	goOn := <-slow.reads
	slow.reads = nil
	within := func(what string, do func()) {
		t.Helper()
		done := make(chan struct{})
		go func() { defer close(done); do() }()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s waits for the disk", what)
		}
	}
	within("a list", func() {
		for _, v := range p.listVolumes() {
			for _, c := range v.Checkpoints {
				if c.DirtyBytes != nil {
					t.Errorf("a list looked up what changed: %+v", c)
				}
			}
		}
	})
	within("the status", func() { p.status() })
	within("a snapshot", func() { snapshot("c") })
	within("a handshake", func() {
		c, err := nbd.Dial(t.Context(), p.at.uri("vol"), nbd.ClientOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		must(t, c.Close())
	})
	closed := make(chan error, 1)
	go func() { closed <- p.deleteVolume(t.Context(), "vol") }()
	within("the end of the doors", func() {
		for e.isOpen() {
			time.Sleep(time.Millisecond)
		}
	})
	select {
	case err := <-closed:
		t.Errorf("the volume was deleted under who looked at it: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if v := <-shown; len(v.Checkpoints) != 2 || *v.Checkpoints[0].DirtyBytes != 64<<10 || v.Checkpoints[0].Doubt != "" {
		t.Errorf("shown: %+v", v)
	}
	must(t, <-closed)
}

// testPlane is a plane without its control socket.
func testPlane(t *testing.T, fsys vfs.FS) *plane {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // A path with the test's name is too long for sockets.
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	o := Options{State: filepath.Join(dir, "state"), Control: filepath.Join(dir, "c"), NBDDir: filepath.Join(dir, "nbd"), Logger: slog.New(slog.DiscardHandler)}
	gid, err := o.prepare()
	must(t, err)
	p := newPlane(o, fsys, gid)
	must(t, p.openAll(t.Context()))
	t.Cleanup(func() { must(t, p.close()) })
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
