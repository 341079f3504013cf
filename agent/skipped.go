package agent

import (
	"cmp"
	"errors"
	"slices"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
)

// What is remembered of a restore that skips: blocks that were told one by one
// become few ranges.
const (
	maxSkipped = 1000
	maxTold    = 16 * maxSkipped
)

// Skipped gathers what a restore passes over.
type Skipped struct{ told []SkippedRange }

// Into makes a restore skip what is damaged, and gather it. Data whose stores are
// only down is not damaged.
func (s *Skipped) Into(o *restore.Options) {
	o.Skip = func(err error) bool { return errors.Is(err, repository.ErrDamaged) }
	o.Skipped = func(off, n int64, err error) {
		if len(s.told) < maxTold {
			s.told = append(s.told, SkippedRange{off, n, err.Error()})
		}
	}
}

// Ranges returns what was passed over, in order, neighbors together.
func (s *Skipped) Ranges() []SkippedRange {
	slices.SortFunc(s.told, func(a, b SkippedRange) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []SkippedRange
	for _, r := range s.told {
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length == r.Offset {
			out[n-1].Length += r.Length
			continue
		}
		out = append(out, r)
	}
	return out[:min(len(out), maxSkipped)]
}
