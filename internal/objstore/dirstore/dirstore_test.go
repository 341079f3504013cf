package dirstore_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

func open(t *testing.T, dir string) *dirstore.Store {
	t.Helper()
	s, err := dirstore.Open(dir, dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, dir string) *dirstore.Store {
	t.Helper()
	s, err := dirstore.Create(dir, dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store {
		t.Helper()
		return create(t, filepath.Join(t.TempDir(), "new", "store"))
	})
}

func TestCreateRefusesForeignFolders(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "photos"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := dirstore.Create(dir, dirstore.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create in a folder with something in it = %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "TMP")); err == nil {
		t.Error("the refused folder was written to")
	}
}

// down lists every operation; each must answer ErrDown and leave no trace.
func down(t *testing.T, s objstore.Store) {
	t.Helper()
	ops := map[string]func(context.Context) error{
		"put":    func(ctx context.Context) error { return s.Put(ctx, "a/b", []byte("x")) },
		"get":    func(ctx context.Context) error { _, err := s.Get(ctx, "a/b", 0, -1, nil); return err },
		"stat":   func(ctx context.Context) error { _, err := s.Stat(ctx, "a/b"); return err },
		"list":   func(ctx context.Context) error { return s.List(ctx, "", func(objstore.Info) error { return nil }) },
		"delete": func(ctx context.Context) error { return s.Delete(ctx, "a/b") },
	}
	for name, op := range ops {
		if err := op(t.Context()); !errors.Is(err, objstore.ErrDown) {
			t.Errorf("%s = %v, want ErrDown", name, err)
		}
	}
}

func TestMissingFolderIsDown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := create(t, dir)
	if err := s.Put(t.Context(), "store", []byte("identity")); err != nil {
		t.Fatal(err)
	}
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	down(t, s)
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("the missing folder was made again")
	}
	down(t, open(t, dir))

	// The place where the disk is not mounted.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	down(t, s)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Fatalf("something was written to an unmounted store: %v, %v", entries, err)
	}

	// And it comes back.
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Errorf("Put into the store that came back: %v", err)
	}
}

func TestForeignFilesAreNoObjects(t *testing.T) {
	dir := t.TempDir()
	s := create(t, dir)
	for _, name := range []string{"store", "a/b"} {
		if err := s.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"README.TXT", "a/.DS Store", "TMP/deadbeef"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	if err := s.List(t.Context(), "", func(objstore.Info) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("%d objects, %v", n, err)
	}
}

func TestOldTempFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := create(t, dir)
	if err := s.Put(t.Context(), "store", nil); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 48 * time.Hour, "young": time.Hour} {
		path := filepath.Join(dir, "TMP", name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, "TMP", "old")); err == nil {
		t.Error("an old temporary file is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, "TMP", "young")); err != nil {
		t.Error("a young temporary file was removed")
	}
}
