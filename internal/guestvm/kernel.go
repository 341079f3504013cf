package guestvm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
)

// tool returns the path of a file that scripts/tools.sh has fetched for guests.
func tool(tb testing.TB, elem ...string) string {
	tb.Helper()
	return needs.Fetched(tb, append([]string{"guest"}, elem...)...)
}

// Build makes a static program of a package, for a guest.
func Build(tb testing.TB, pkg string) string {
	tb.Helper()
	bin := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-ldflags", "-s -w", "-o", bin, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// inOrder returns the files of modules and of all that these need, each behind what it
// needs.
func inOrder(tb testing.TB, names []string) ([]string, error) {
	tb.Helper()
	var files []string
	var add func(name string) error
	add = func(name string) error {
		file := tool(tb, "modules", strings.ReplaceAll(name, "-", "_")+".ko")
		if slices.Contains(files, file) {
			return nil
		}
		needed, err := moduleNeeds(file)
		if err != nil {
			return err
		}
		for _, n := range needed {
			if err := add(n); err != nil {
				return err
			}
		}
		files = append(files, file)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// moduleNeeds reads from a module itself which others it needs.
func moduleNeeds(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is no kernel module", file)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(line), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
