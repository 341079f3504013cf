package main

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Whatever a crash or a bad disk leaves of the file, no pack is taken for sound that was
// not noted as sound: the file gives back a first part of what was noted, or nothing.
func TestCheckProgress(t *testing.T) {
	name := filepath.Join(t.TempDir(), "check", "repository.100")
	now := time.Unix(1_760_000_000, 0)
	open := func(anew bool, at time.Time) *checkProgress {
		t.Helper()
		p, err := openProgress(name, anew, at)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open(false, now)
	if p.goesOn() != "" {
		t.Errorf("a new one: %s", p.goesOn())
	}
	if _, err := openProgress(name, false, now); err == nil {
		t.Error("two checks use one file")
	}
	for _, sessions := range [][]string{{"01", "02", "03"}, {"01", "03"}} {
		if err := p.opens(sessions); err != nil || p.err != nil {
			t.Fatal(err, p.err)
		}
	}
	var order []string
	noted := make(map[string]bool)
	for i := range 5 {
		pack := strings.Repeat("0"+string(rune('a'+i)), 32)
		order = append(order, pack)
		noted[pack] = i != 2
		if err := p.read(pack, noted[pack]); err != nil || p.err != nil {
			t.Fatal(err, p.err)
		}
	}
	if err := p.leave(); err != nil {
		t.Fatal(err)
	}
	p = open(false, now.Add(time.Hour))
	if !maps.Equal(p.done, noted) || !strings.Contains(p.goesOn(), "5 packs were read before, of which 1 were damaged") || !maps.Equal(p.opened, map[string]bool{"01": true, "03": true}) {
		t.Errorf("%v, %v, %s", p.done, p.opened, p.goesOn())
	}
	if err := p.leave(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// prefix says whether what was read is a first part of what was noted.
	prefix := func(done map[string]bool) bool {
		for _, pack := range order[:len(done)] {
			if sound, ok := done[pack]; !ok || sound != noted[pack] {
				return false
			}
		}
		return true
	}
	for at := range good {
		for _, bad := range [][]byte{good[:at], append([]byte(string(good[:at])), append([]byte{good[at] ^ 1}, good[at+1:]...)...)} {
			if err := os.WriteFile(name, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			p = open(false, now)
			before := len(p.done)
			if !prefix(p.done) || before == 5 || before > 0 && !maps.Equal(p.opened, map[string]bool{"01": true, "03": true}) {
				t.Fatalf("byte %d: %v", at, p.done)
			}
			// It can be written on, and read again.
			if err := p.read(strings.Repeat("f", 64), true); err != nil {
				t.Fatal(err)
			}
			if err := p.leave(); err != nil {
				t.Fatal(err)
			}
			if p = open(false, now); len(p.done) != before+1 {
				t.Fatalf("byte %d: %d packs and one more are %d", at, before, len(p.done))
			}
			if err := p.leave(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, begin := range []struct {
		what string
		anew bool
		at   time.Time
	}{{"--from-start", true, now}, {"too old", false, now.Add(checkStale + time.Hour)}, {"from the future", false, now.Add(-time.Hour)}} {
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if p = open(begin.anew, begin.at); len(p.done)+len(p.opened) != 0 || p.goesOn() != "" {
			t.Errorf("%s: %v", begin.what, p.done)
		}
		if err := p.leave(); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(false, now).finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("behind the end: %v", err)
	}
}
