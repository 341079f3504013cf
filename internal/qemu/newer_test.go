package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestNewer runs the other tests, which take the qemu that is installed, once more with
// that of a newer Debian.
func TestNewer(t *testing.T) {
	if testing.Short() {
		t.Skip("all tests with another qemu: not with -short")
	}
	programs := filepath.Dir(needs.Newer(t, "qemu-system-x86_64"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	all := exec.CommandContext(t.Context(), self, "-test.v", "-test.skip=^TestNewer$", "-test.timeout=15m")
	all.Env = append(os.Environ(), "PATH="+programs+string(filepath.ListSeparator)+os.Getenv("PATH"))
	out, err := all.CombinedOutput()
	if err != nil {
		t.Fatalf("with the programs in %s: %v\n%s", programs, err, out)
	}
	if !strings.Contains(string(out), "--- PASS: TestIOThread/") { // 9.0 and newer only
		t.Errorf("the programs in %s were not taken:\n%s", programs, out)
	}
}
