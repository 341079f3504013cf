package serve_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

// Every refusal has a code and a sentence that names the thing and, where
// there is one, the way out.
func TestRefusals(t *testing.T) {
	p := start(t, options(t))
	dir := t.TempDir()
	file := filepath.Join(dir, "disk.img")
	for name, head := range map[string]string{"disk.img": "", "disk.qcow2": "QFI\xfb\x00\x00\x00\x03"} {
		if err := os.WriteFile(filepath.Join(dir, name), append([]byte(head), make([]byte, mib-len(head))...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, filepath.Join(dir, "link.img")); err != nil {
		t.Fatal(err)
	}
	a := p.create(t, "a", mib)
	p.create(t, "b", mib)
	if _, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "f", File: file}); err != nil {
		t.Fatal(err)
	}
	ss := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"a", "b"}, Name: "both", Checkpoints: []string{"c1", ""}})

	create := func(r serve.CreateVolume) func(context.Context) error {
		return func(ctx context.Context) error { _, err := p.CreateVolume(ctx, r); return err }
	}
	extend := func(ref string, size int64) func(context.Context) error {
		return func(ctx context.Context) error { _, err := p.ExtendVolume(ctx, ref, size); return err }
	}
	snapshot := func(r serve.CreateSnapshots) func(context.Context) error {
		return func(ctx context.Context) error { _, err := p.CreateSnapshots(ctx, r); return err }
	}
	const newID, otherID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b811-9dad-41d1-80b4-00c04fd430c8"
	long := strings.Repeat("n", 64)
	for _, tt := range []struct {
		name string
		do   func(context.Context) error
		code serve.Code
		says string
	}{
		{"bad name", create(serve.CreateVolume{Name: "../x", Size: mib}), serve.CodeInvalid, "1 to 63"},
		{"long name", create(serve.CreateVolume{Name: long, Size: mib}), serve.CodeInvalid, "1 to 63"},
		{"name like an ID", create(serve.CreateVolume{Name: a.ID, Size: mib}), serve.CodeInvalid, "looks like an ID"},
		{"name taken", create(serve.CreateVolume{Name: "a", Size: mib}), serve.CodeConflict, a.ID},
		{"no kind", create(serve.CreateVolume{Name: "x"}), serve.CodeInvalid, "exactly one of"},
		{"two kinds", create(serve.CreateVolume{Name: "x", Size: mib, File: file}), serve.CodeInvalid, "exactly one of"},
		{"negative size", create(serve.CreateVolume{Name: "x", Size: -1}), serve.CodeInvalid, "-1 bytes"},
		{"absurd size", create(serve.CreateVolume{Name: "x", Size: 1 << 50}), serve.CodeInvalid, "at most 128TiB"},
		{"odd size", create(serve.CreateVolume{Name: "x", Size: 1000}), serve.CodeInvalid, "512"},
		{"no such file", create(serve.CreateVolume{Name: "x", File: "/nowhere/disk.img"}), serve.CodeInvalid, "/nowhere/disk.img"},
		{"relative file", create(serve.CreateVolume{Name: "x", File: "disk.img"}), serve.CodeInvalid, "not absolute"},
		{"folder", create(serve.CreateVolume{Name: "x", File: dir}), serve.CodeInvalid, "not a regular file"},
		{"file as device", create(serve.CreateVolume{Name: "x", Device: file}), serve.CodeInvalid, "give it as a file"},
		{"character device", create(serve.CreateVolume{Name: "x", Device: "/dev/null"}), serve.CodeInvalid, "not a block device"},
		{"file of another volume", create(serve.CreateVolume{Name: "x", File: file}), serve.CodeConflict, "volume f"},
		{"the same by a link", create(serve.CreateVolume{Name: "x", File: filepath.Join(dir, "link.img")}), serve.CodeConflict, "volume f"},
		{"our own state", create(serve.CreateVolume{Name: "x", File: a.Path}), serve.CodeInvalid, "own state folder"},
		{"qcow2", create(serve.CreateVolume{Name: "x", File: filepath.Join(dir, "disk.qcow2")}), serve.CodeInvalid, "qcow2"},

		{"unknown volume", func(ctx context.Context) error { _, err := p.Volume(ctx, "x"); return err }, serve.CodeNotFound, `"x"`},
		{"unknown ID", func(ctx context.Context) error { return p.DeleteVolume(ctx, "00000000-0000-4000-8000-000000000000") }, serve.CodeNotFound, "00000000"},
		{"empty name", func(ctx context.Context) error { _, err := p.Volume(ctx, ""); return err }, serve.CodeNotFound, "no volume"},
		{"dots", func(ctx context.Context) error { return p.DeleteVolume(ctx, "..") }, serve.CodeNotFound, ".."},
		{"a path", func(ctx context.Context) error { _, err := p.Volume(ctx, "../../v1/status"); return err }, serve.CodeNotFound, "no volume"},

		{"shrink", extend("a", mib/2), serve.CodeInvalid, "can only grow"},
		{"same size", extend("a", mib), serve.CodeInvalid, "can only grow"},
		{"odd extension", extend("a", 2*mib+1), serve.CodeInvalid, "512"},
		{"delete with snapshot", func(ctx context.Context) error { return p.DeleteVolume(ctx, "a") }, serve.CodeConflict, "has snapshot both"},

		{"no volume", snapshot(serve.CreateSnapshots{}), serve.CodeInvalid, "at least one"},
		{"twice", snapshot(serve.CreateSnapshots{Volumes: []string{"a", a.ID}}), serve.CodeInvalid, "given twice"},
		{"too many", snapshot(serve.CreateSnapshots{Volumes: make([]string, 65)}), serve.CodeInvalid, "limit"},
		{"snapshot name taken", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, Name: "both"}), serve.CodeConflict, "both already"},
		{"snapshot called ro", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, Name: "ro"}), serve.CodeInvalid, "read-only export"},
		{"bad snapshot name", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, Name: "a@b"}), serve.CodeInvalid, "1 to 63"},
		{"bad checkpoint", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, Checkpoints: []string{"snapshot:x"}}), serve.CodeInvalid, "1 to 63"},
		{"checkpoints for others", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, Checkpoints: []string{"x", "y"}}), serve.CodeInvalid, "2 checkpoints for 1"},
		{"checkpoint taken", snapshot(serve.CreateSnapshots{Volumes: []string{"b", "a"}, Checkpoints: []string{"c1", "c1"}}), serve.CodeConflict, "c1 already"},
		{"IDs for others", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, IDs: []string{newID, otherID}}), serve.CodeInvalid, "2 IDs of snapshots for 1"},
		{"an ID that is none", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, IDs: []string{"x"}}), serve.CodeInvalid, "new snapshot is no UUID"},
		{"the ID of nothing", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, IDs: []string{"00000000-0000-0000-0000-000000000000"}}), serve.CodeInvalid, "new snapshot is no UUID"},
		{"an ID left out", snapshot(serve.CreateSnapshots{Volumes: []string{"a", "b"}, IDs: []string{newID, ""}}), serve.CodeInvalid, "snapshot 2 of the request has no ID"},
		{"an ID twice", snapshot(serve.CreateSnapshots{Volumes: []string{"a", "b"}, IDs: []string{newID, newID}}), serve.CodeInvalid, "two snapshots"},
		{"an ID taken", snapshot(serve.CreateSnapshots{Volumes: []string{"a"}, IDs: []string{ss[0].ID}}), serve.CodeConflict, "volume a has a snapshot"},
		{"an ID taken elsewhere", snapshot(serve.CreateSnapshots{Volumes: []string{"b"}, IDs: []string{ss[0].ID}}), serve.CodeConflict, "volume a has a snapshot"},
		{"ambiguous snapshot", func(ctx context.Context) error { return p.DeleteSnapshot(ctx, "both") }, serve.CodeConflict, "a@both, b@both"},
		{"unknown snapshot", func(ctx context.Context) error { return p.RevertVolume(ctx, "a@x") }, serve.CodeNotFound, "a@x"},
		{"checkpoint at no snapshot", func(ctx context.Context) error { return p.AliasCheckpoint(ctx, "a@x", "k") }, serve.CodeNotFound, "a@x"},
		{"bad name at a snapshot", func(ctx context.Context) error { return p.AliasCheckpoint(ctx, "a@both", "snapshot:x") }, serve.CodeInvalid, "1 to 63"},
		{"unknown checkpoint", func(ctx context.Context) error { return p.DropCheckpoint(ctx, "a", "..") }, serve.CodeNotFound, "no checkpoint"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do(t.Context())
			e, ok := errors.AsType[*serve.Error](err)
			if !ok {
				t.Fatalf("%v is no refusal", err)
			}
			if e.Code != tt.code || !strings.Contains(e.Text, tt.says) {
				t.Errorf("refused as %s: %q; want %s and something about %q", e.Code, e.Text, tt.code, tt.says)
			}
		})
	}

	// None of these left anything.
	vs, err := p.Volumes(t.Context())
	if err != nil || len(vs) != 3 {
		t.Errorf("volumes: %+v, %v", vs, err)
	}
	for folder, want := range map[string]int{filepath.Join(p.o.State, "volumes"): 3, p.o.NBDDir: 5} {
		dir, err := os.ReadDir(folder)
		if err != nil || len(dir) != want {
			t.Errorf("%s has %v, %v; want %d entries", folder, dir, err, want)
		}
	}
}

func TestAllowFormat(t *testing.T) {
	p := start(t, options(t))
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, mib-8)...), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "x", File: file, AllowFormat: true})
	if err != nil || v.Size != mib {
		t.Fatalf("told to take it as raw: %+v, %v", v, err)
	}
	// What it was told once holds.
	p = p.restart(t)
	if v, err := p.Volume(t.Context(), "x"); err != nil || v.Status != serve.StatusAvailable {
		t.Errorf("after a restart: %+v, %v", v, err)
	}
}
