package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A log that cannot be put aside is written on.
func TestAuditRotate(t *testing.T) {
	dir := t.TempDir()
	a, err := openAudit(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.close() }()
	a.size = auditBytes
	if err = a.add(auditEntry{Action: "one"}); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "audit.log.1")
	if _, err = os.Stat(old); err != nil || a.size > 1000 {
		t.Errorf("not put aside: %d, %v", a.size, err)
	}
	if err = os.Remove(old); err != nil {
		t.Fatal(err)
	}
	for n := range auditKept {
		if err = os.MkdirAll(filepath.Join(a.aside(n+1), "full"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	a.size = auditBytes
	for range 2 {
		if err = a.add(auditEntry{Action: "two"}); err == nil {
			t.Error("nobody is told that the log grows on")
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	if err != nil || strings.Count(string(data), `"two"`) != 2 {
		t.Errorf("%s, %v", data, err)
	}
}

// The last logs that were put aside are kept, each whole and in order, and a gap among
// them is filled before anything is given up.
func TestAuditKeepsSeveral(t *testing.T) {
	dir := t.TempDir()
	a, err := openAudit(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.close() }()
	a.most = 1 // each entry begins another
	next := 0
	add := func(n int) {
		t.Helper()
		for range n {
			if aerr := a.add(auditEntry{Action: fmt.Sprintf("entry %d.", next)}); aerr != nil {
				t.Fatal(aerr)
			}
			next++
		}
	}
	// has checks which entries there are, the log's own first; -1 is a gap.
	has := func(want ...int) {
		t.Helper()
		for n, entry := range want {
			name := a.name
			if n > 0 {
				name = a.aside(n)
			}
			data, rerr := os.ReadFile(name)
			if entry < 0 {
				if !errors.Is(rerr, fs.ErrNotExist) {
					t.Errorf("%s is there: %q, %v", name, data, rerr)
				}
				continue
			}
			if rerr != nil || strings.Count(string(data), "\n") != 1 || !strings.Contains(string(data), fmt.Sprintf(`"entry %d."`, entry)) {
				t.Errorf("%s is %q, %v, want entry %d", name, data, rerr, entry)
			}
		}
		if l, gerr := filepath.Glob(a.name + "*"); gerr != nil || len(l) > 1+auditKept {
			t.Errorf("there are %q, %v", l, gerr)
		}
	}
	add(3)
	has(2, 1, 0, -1)
	add(10)
	has(12, 11, 10, 9, 8, 7, 6, 5, 4, -1)
	if err = os.Remove(a.aside(3)); err != nil {
		t.Fatal(err)
	}
	add(1)
	has(13, 12, 11, 10, 8, 7, 6, 5, 4, -1)
	if err = a.close(); err != nil {
		t.Fatal(err)
	}
	if a, err = openAudit(dir); err != nil {
		t.Fatal(err)
	}
	a.most = 1
	add(1)
	has(14, 13, 12, 11, 10, 8, 7, 6, 5, -1)
}
