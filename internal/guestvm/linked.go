package guestvm

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Linked returns the files that a guest needs for a program that scripts/tools.sh has
// fetched with its libraries, below root: the program, its loader and all libraries that
// these name, by their path in the guest. They are for [Options] and [Tree].
func Linked(tb testing.TB, root, program string) map[string]string {
	tb.Helper()
	files := map[string]string{program: filepath.Join(root, program)}
	if err := linked(root, filepath.Join(root, program), files); err != nil {
		tb.Fatalf("what %s needs: %v", program, err)
	}
	return files
}

// linked adds to files what a program or a library needs, and what that needs.
func linked(root, file string, files map[string]string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	needed := map[string]string{} // path in the guest to name
	for _, name := range names {
		needed[path.Join("/lib", name)] = name
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		there := strings.TrimRight(string(loader), "\x00")
		needed[there] = path.Base(there)
	}
	for there, name := range needed {
		if files[there] != "" {
			continue
		}
		found, err := filepath.Glob(filepath.Join(root, "usr/lib/*", name))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%s needs %s, of which there are %d: %w", file, name, len(found), os.ErrNotExist)
		}
		files[there] = found[0]
		if err = linked(root, found[0], files); err != nil {
			return err
		}
	}
	return nil
}
