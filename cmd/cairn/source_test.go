package main

import (
	"strings"
	"testing"
)

func TestMountPurpose(t *testing.T) {
	for dir, want := range map[string]string{
		"/mnt":                         "mounted on /mnt by process 12",
		"/mnt/Sicherung für alle":      "mounted on /mnt/Sicherung für alle by process 12",
		"/mnt/two\nlines":              "mounted by process 12",
		"/mnt/\xff":                    "mounted by process 12",
		"/" + strings.Repeat("x", 300): "mounted by process 12",
	} {
		if got := mountPurpose(dir, 12); got != want {
			t.Errorf("%q: %q, want %q", dir, got, want)
		}
	}
}
