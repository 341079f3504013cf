package main

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// maxSize is beyond what any part of Cairn accepts, and far from overflow.
const maxSize = 1 << 56

// parseSize understands 4GiB, 4G, 512m, 1.5T and plain bytes. A unit of 1000 is
// refused rather than guessed at.
func parseSize(s string) (int64, error) {
	split := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if split < 0 {
		split = len(s)
	}
	number, unit := s[:split], strings.TrimSpace(s[split:])
	value, ok := new(big.Rat).SetString(number)
	if !ok || len(number) > 20 {
		return 0, usagef("%q is not a size: write a number and a unit, such as 512MiB, 4GiB or 1T", s)
	}
	shift, err := unitShift(s, number, unit)
	if err != nil {
		return 0, err
	}
	value.Mul(value, new(big.Rat).SetInt64(1<<shift))
	switch {
	case value.Cmp(new(big.Rat).SetInt64(maxSize)) > 0:
		return 0, usagef("size %s is too large: the limit is 64 PiB", s)
	case !value.IsInt():
		return 0, usagef("size %s is no whole number of bytes", s)
	}
	return value.Num().Int64(), nil
}

// unitShift returns the power of two that a unit stands for.
func unitShift(s, number, unit string) (uint, error) {
	u := strings.ToLower(unit)
	if u == "" || u == "b" {
		return 0, nil
	}
	if i := strings.IndexByte("kmgtp", u[0]); i >= 0 {
		switch u[1:] {
		case "", "i", "ib":
			return uint(i+1) * 10, nil
		case "b":
			binary := strings.ToUpper(u[:1]) + "iB"
			return 0, usagef("size %s: %s may mean 1000 or 1024 to the power of %d: write %s%s (1024)", s, unit, i+1, number, binary)
		}
	}
	return 0, usagef("size %s: %q is not a unit: take KiB, MiB, GiB, TiB or PiB", s, unit)
}

// sizeFlag is the value of a flag that holds a size; 0 if it is not given.
func sizeFlag(c *cli.Context, name string) (int64, error) {
	s := c.String(name)
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, fmt.Errorf("--%s: %w", name, err)
	}
	return n, nil
}

// human writes a size with three digits or so.
func human(n int64) string {
	if n < 0 {
		return "-" + human(-n)
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1023.95 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return strconv.FormatInt(n, 10) + " B"
	}
	digits := 1
	if f >= 99.95 {
		digits = 0
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', digits, 64), ".0") + " " + units[i]
}

// exact is human with the bytes behind it.
func exact(n int64) string {
	if n < 1024 {
		return human(n)
	}
	return fmt.Sprintf("%s (%d bytes)", human(n), n)
}
