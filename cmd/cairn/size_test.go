package main

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
		err  string
	}{
		{in: "4GiB", want: 4 << 30},
		{in: "4G", want: 4 << 30},
		{in: "4g", want: 4 << 30},
		{in: "512MiB", want: 512 << 20},
		{in: "1T", want: 1 << 40},
		{in: "1.5T", want: 3 << 39},
		{in: "64k", want: 64 << 10},
		{in: "4096", want: 4096},
		{in: "4096B", want: 4096},
		{in: "2 GiB", want: 2 << 30},
		{in: "0", want: 0},
		{in: "64PiB", want: 1 << 56},
		{in: "65PiB", err: "too large: the limit is 64 PiB"},
		{in: "99999999999999999T", err: "too large"},
		{in: "4GB", err: "GB may mean 1000 or 1024 to the power of 3: write 4GiB (1024)"},
		{in: "4Gb", err: "write 4GiB"},
		{in: "4X", err: `"X" is not a unit: take KiB, MiB, GiB, TiB or PiB`},
		{in: "4GiBB", err: `"GiBB" is not a unit`},
		{in: "", err: "is not a size"},
		{in: "GiB", err: "is not a size"},
		{in: "-4G", err: "is not a size"},
		{in: "1e3", err: "is not a unit"},
		{in: "1/2G", err: "is not a unit"},
		{in: "1.2.3", err: "is not a size"},
		{in: "0.1", err: "no whole number of bytes"},
	} {
		got, err := parseSize(c.in)
		switch {
		case c.err == "" && (err != nil || got != c.want):
			t.Errorf("%q: %d, %v; want %d", c.in, got, err, c.want)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !isUsage(err)):
			t.Errorf("%q: %d, %v; want an error with %q", c.in, got, err, c.err)
		}
	}
}

func TestParseSizeNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, err := parseSize(rapid.StringMatching(`[0-9.]{0,25}[ a-zA-Z/]{0,5}`).Draw(t, "s"))
		if err == nil && (n < 0 || n > maxSize) {
			t.Fatalf("%d", n)
		}
	})
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 4 << 30: "4 GiB", 4<<30 + 1<<27: "4.1 GiB",
		1023 << 20: "1023 MiB", 1<<30 - 1: "1 GiB", 3 << 60: "3072 PiB", -2048: "-2 KiB",
	} {
		if got := human(n); got != want {
			t.Errorf("human(%d) = %q, want %q", n, got, want)
		}
	}
}
