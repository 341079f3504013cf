package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		err  string
	}{
		{in: "0"},
		{in: "90m", want: 90 * time.Minute},
		{in: "1h30m", want: 90 * time.Minute},
		{in: "30d", want: 720 * time.Hour},
		{in: "4w", want: 672 * time.Hour},
		{in: "0d"},
		{in: "-1d", err: "is not a length of time"},
		{in: "-1h", err: "is not a length of time"},
		{in: "1.5d", err: "is not a length of time"},
		{in: "d", err: "such as 90m, 36h, 30d or 4w"},
		{in: "3", err: "is not a length of time"},
		{in: "1y", err: "is not a length of time"},
		{in: "", err: "is not a length of time"},
		{in: "9999999999w", err: "longer than can be counted"},
	} {
		got, err := parseTime(c.in)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("parseTime(%q) = %v, %v; want %v, %q", c.in, got, err, c.want, c.err)
		}
	}
}
