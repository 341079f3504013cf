package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPassword(t *testing.T) {
	for _, c := range []struct {
		name, content string
		mode          os.FileMode
		want, err     string
	}{
		{name: "plain", content: "secret", mode: 0o600, want: "secret"},
		{name: "line break", content: "secret\n", mode: 0o600, want: "secret"},
		{name: "read-only", content: " s p \r\n", mode: 0o400, want: " s p "},
		{name: "empty", content: "\n", mode: 0o600, err: "is empty"},
		{name: "others", content: "x", mode: 0o604, err: "can be read by others (its mode is 0604): protect it with"},
		{name: "group", content: "x", mode: 0o640, err: "can be read by others"},
		{name: "long", content: strings.Repeat("x", 5000), mode: 0o600, err: "is longer than 4096 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "pw")
			if err := os.WriteFile(name, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(name, c.mode); err != nil {
				t.Fatal(err)
			}
			got, err := readPassword(name)
			if c.err == "" && (err != nil || string(got) != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	if _, err := readPassword(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("folder: %v", err)
	}
}

func TestMakePassword(t *testing.T) {
	name := filepath.Join(t.TempDir(), "state", "password")
	made, err := makePassword(name)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readPassword(name); err != nil || string(got) != string(made) || len(got) < 32 {
		t.Errorf("read %q, %v; made %q", got, err, made)
	}
	if _, err := makePassword(name); err == nil {
		t.Error("made over an existing one")
	}
}
