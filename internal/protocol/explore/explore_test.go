package explore

import (
	"slices"
	"testing"
)

// jugs is the puzzle of a jug of three and a jug of five: bad is to hold four.
type jugs struct{ bad uint8 }

func (jugs) Next(s *[2]uint8, emit func(Label, *[2]uint8)) {
	size := [2]uint8{3, 5}
	for i := range s {
		full, empty, poured := *s, *s, *s
		full[i], empty[i] = size[i], 0
		amount := min(s[i], size[1-i]-s[1-i])
		poured[i] -= amount
		poured[1-i] += amount
		emit(Label(i), &full)
		emit(Label(2+i), &empty)
		emit(Label(4+i), &poured)
	}
}

func (j jugs) Check(s *[2]uint8) string {
	if s[1] == j.bad {
		return "found"
	}
	return ""
}

func (jugs) Describe(l Label) string {
	return [...]string{"fill 3", "fill 5", "empty 3", "empty 5", "pour 3", "pour 5"}[l]
}

func TestRun(t *testing.T) {
	r := Run(jugs{bad: 4}, [2]uint8{}, 1000)
	want := []string{"fill 5", "pour 5", "empty 3", "pour 5", "fill 5", "pour 5"}
	if r.Violation != "found" || !slices.Equal(r.Trace, want) {
		t.Errorf("%v: %q, want %q", r, r.Trace, want)
	}
	// On every reachable state one jug is empty or full: 16 of the 24.
	if r = Run(jugs{bad: 9}, [2]uint8{}, 1000); r.Violation != "" || r.Truncated || r.States != 16 {
		t.Errorf("%v, want 16 states", r)
	}
	if r = Run(jugs{bad: 9}, [2]uint8{}, 5); !r.Truncated {
		t.Errorf("%v, want it cut at 5", r)
	}
}

// counter has more states than a block and the first table hold.
type counter struct{}

func (counter) Next(s *[1]uint32, emit func(Label, *[1]uint32)) {
	for _, to := range []uint32{2 * s[0], 2*s[0] + 1} {
		if to < 200_000 {
			emit(0, &[1]uint32{to})
		}
	}
}
func (counter) Check(*[1]uint32) string { return "" }
func (counter) Describe(Label) string   { return "" }

func TestManyStates(t *testing.T) {
	if r := Run(counter{}, [1]uint32{1}, 1<<20); r.States != 199_999 {
		t.Errorf("%v, want 199999 states", r)
	}
}
