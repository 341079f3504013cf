package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The position of a check comes back as it was left, and what is no position is
// the beginning.
func TestCheckPosition(t *testing.T) {
	name := filepath.Join(t.TempDir(), "check", "repository")
	if p, err := readPosition(name); p != "" || err != nil {
		t.Errorf("none: %q, %v", p, err)
	}
	for n := range 2 {
		position := strings.Repeat("0"+string(rune('a'+n)), 32)
		if err := writePosition(name, position); err != nil {
			t.Fatal(err)
		}
		if p, err := readPosition(name); p != position || err != nil {
			t.Errorf("%q, %v", p, err)
		}
	}
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", string(good[:len(good)-1]), string(good[1:]), string(good) + "\n", positionHeader + "xyz\n", strings.Repeat("0", 5000)} {
		if err := os.WriteFile(name, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := readPosition(name); p != "" || err != nil {
			t.Errorf("%.50q: %q, %v", bad, p, err)
		}
	}
}

func TestShare(t *testing.T) {
	for text, want := range map[string]int{"true": 100, "1": 1, "100": 100, "25%": 25, "0": 0, "101": 0, "-1": 0, "": 0, "false": 0} {
		var s share
		if err := s.Set(text); int(s) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, s, err)
		}
	}
}
