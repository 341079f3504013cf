package e2e

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// command prepares a program that ends with the test.
func (b *toolbox) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	return b.program(t, needs.Tool(t, name, "that the test names"), args...)
}

// program is command for a path.
func (b *toolbox) program(t *testing.T, path string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir()
	// nbdsh is a script for the system's Python, which has the module.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin")
	return cmd
}

// command prepares a program of the way.
func (s *toolUse) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if s.newer && slices.Contains([]string{"nbdinfo", "nbdcopy", "nbdsh", "qemu-img", "qemu-io"}, name) {
		return s.program(t, needs.Newer(t, name), args...)
	}
	return s.toolbox.command(t, name, args...)
}

// must runs a program that has to succeed, and returns what it said.
func must(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// run runs a program of the way that has to succeed, and returns what it said.
func (s *toolUse) run(name string, args ...string) string {
	s.Helper()
	return must(s.T, s.command(s.T, name, args...))
}

// qemu runs one of qemu's programs on nodes, which follow its arguments.
func (s *toolUse) qemu(name string, args []string, nodes ...string) string {
	s.Helper()
	sub := 0
	if name == "qemu-img" { // its options follow the subcommand
		sub = 1
	}
	return s.run(name, slices.Concat(args[:sub], s.object, args[sub:], []string{"--image-opts"}, nodes)...)
}

// fileNode is a raw file for qemu's programs.
func fileNode(file string) string { return "driver=raw,file.driver=file,file.filename=" + file }

// has checks that a program's answer holds some texts.
func (s *toolUse) has(out string, want ...string) {
	s.Helper()
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), w) {
			s.Errorf("no %q in\n%s", w, out)
		}
	}
}

// same compares two files.
func (s *toolUse) same(what, got, want string) {
	s.Helper()
	if out, err := s.command(s.T, "cmp", got, want).CombinedOutput(); err != nil {
		s.Errorf("%s: %v\n%s", what, err, out)
	}
}
