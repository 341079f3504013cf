package main

import (
	"strconv"
	"strings"
	"time"
)

// parseTime understands how long something lasts: 90m, 36h, 30d, 4w. A year has
// no fixed length and is refused, as is a month.
func parseTime(s string) (time.Duration, error) {
	bad := usagef("%q is not a length of time: write a number and a unit, such as 90m, 36h, 30d or 4w", s)
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		number, ok := strings.CutSuffix(s, unit)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 0 {
			return 0, bad
		}
		if n > int64(1<<63-1)/int64(length) {
			return 0, usagef("%s is longer than can be counted", s)
		}
		return time.Duration(n) * length, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}
