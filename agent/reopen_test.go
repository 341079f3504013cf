package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A volume whose data were away when the data plane started is back when they
// are, without anything being restarted.
func TestReopenVolume(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	file := filepath.Join(r.dir, "disk.raw")
	shadow := noise(1 << 20)
	if err := os.WriteFile(file, shadow, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "disk", File: file}); err != nil {
		t.Fatal(err)
	}
	r.stopServe()
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	r.startServe()
	if _, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"}); !errors.Is(err, ErrConflict) {
		t.Errorf("backup without data: %v", err)
	}
	_, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}})
	if err == nil || !strings.Contains(err.Error(), "cairn volume reopen") {
		t.Errorf("no way out is named: %v", err)
	}
	if _, err = r.agent.ReopenVolume(ctx, "disk"); err == nil {
		t.Error("opened without data")
	}
	if err = os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	v, err := r.agent.ReopenVolume(ctx, "disk")
	if err != nil || v.Status != "available" {
		t.Fatalf("%+v, %v", v, err)
	}
	r.same(r.backup(CreateBackup{Volume: "disk"}), shadow)

	c := r.dial(v.URI)
	if _, err = r.agent.ReopenVolume(ctx, "disk"); !errors.Is(err, ErrBusy) {
		t.Errorf("reopened under a client: %v", err)
	}
	if err = c.Close(); err != nil {
		t.Error(err)
	}
	if _, err = r.agent.ReopenVolume(ctx, "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such volume: %v", err)
	}
}
