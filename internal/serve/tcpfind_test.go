package serve

import (
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/nbd"
)

// What was found over TCP just before its volume was reopened, or deleted, does not lead to
// what is closed.
func TestFoundBeforeReopen(t *testing.T) {
	p := testPlane(t, vfs.OS())
	_, err := p.createVolume(t.Context(), CreateVolume{Name: "vol", Size: 1 << 20})
	must(t, err)
	_, err = p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"vol"}, Name: "s"})
	must(t, err)
	opens := func(name string) func() error {
		t.Helper()
		e, ok := p.Export(name)
		if !ok {
			t.Fatalf("there is no export %s", name)
		}
		return func() error {
			d, oerr := e.Open(t.Context(), nbd.Peer{PID: -1, CommonName: "a", Addr: "127.0.0.1:1"})
			if oerr == nil {
				oerr = d.Close()
			}
			return oerr
		}
	}
	volume, reader, snapshot := opens("vol"), opens("vol@ro"), opens("vol@s")
	for _, open := range []func() error{volume, reader, snapshot} {
		must(t, open())
	}
	_, err = p.reopenVolume(t.Context(), "vol")
	must(t, err)
	must(t, volume()) // they ask for the volume as it is now
	must(t, reader())
	if err = snapshot(); !errors.Is(err, ErrNotFound) {
		t.Errorf("a snapshot from before the volume was reopened is opened: %v", err)
	}
	snapshot = opens("vol@s")
	must(t, snapshot())
	must(t, p.deleteSnapshot(t.Context(), "vol@s"))
	if err = snapshot(); err == nil {
		t.Error("a deleted snapshot is opened")
	}
	must(t, p.deleteVolume(t.Context(), "vol"))
	for _, open := range []func() error{volume, reader} {
		if err = open(); err == nil {
			t.Error("a deleted volume is opened")
		}
	}
	for _, name := range []string{"vol", "vol@ro", "vol@s", "", "@ro", "vol@"} {
		if _, ok := p.Export(name); ok {
			t.Errorf("export %q is found", name)
		}
	}
}
