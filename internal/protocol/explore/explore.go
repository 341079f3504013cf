// Package explore visits every state that a small model can reach, breadth
// first, so that the trace to a violation is a shortest one.
package explore

import (
	"fmt"
	"hash/maphash"
	"math"
	"slices"
)

// Label names a step to the model that made it.
type Label uint32

// Model is what is explored. S is copied and compared often: it should be a
// small struct of arrays of integers, without pointers.
type Model[S comparable] interface {
	// Next calls emit once for each step that is possible in s.
	Next(s *S, emit func(Label, *S))
	// Check returns what is wrong with s, or "".
	Check(s *S) string
	// Describe says in words what the step l does.
	Describe(l Label) string
}

// Result is what an exploration found.
type Result struct {
	States, Steps int      // distinct states, and steps between them
	Violation     string   // what Check said of the first bad state, or ""
	Trace         []string // the steps to that state
	Truncated     bool     // the limit was reached: states were left out
}

func (r Result) String() string {
	switch {
	case r.Violation != "":
		return fmt.Sprintf("%d states, violated after %d steps: %s", r.States, len(r.Trace), r.Violation)
	case r.Truncated:
		return fmt.Sprintf("more than %d states, the rest not visited", r.States)
	default:
		return fmt.Sprintf("%d states, %d steps", r.States, r.Steps)
	}
}

// Run explores m from start, until a state violates it, none is left, or more
// than limit were found.
func Run[S comparable](m Model[S], start S, limit int) Result {
	v := visited[S]{table: make([]int32, 1<<16), seed: maphash.MakeSeed()}
	v.add(&start, -1, 0)
	limit = min(limit, math.MaxInt32-1)

	var r Result
	cur := 0
	emit := func(l Label, t *S) {
		r.Steps++
		v.add(t, cur, l)
	}
	for ; cur < v.n; cur++ {
		s := *v.at(cur)
		if r.Violation = m.Check(&s); r.Violation != "" {
			for i := cur; v.from[i] >= 0; i = int(v.from[i]) {
				r.Trace = append(r.Trace, m.Describe(v.by[i]))
			}
			slices.Reverse(r.Trace)
			break
		}
		if v.n > limit {
			r.Truncated = true
			break
		}
		m.Next(&s, emit)
	}
	r.States = v.n
	return r
}

// visited is the set of states found so far, in the order of their finding,
// each with the state and the step that it was found by.
type visited[S comparable] struct {
	blocks [][]S // states, block by block: growing copies none
	from   []int32
	by     []Label
	table  []int32 // open addressing: 1 + index of a state, 0 = free
	seed   maphash.Seed
	n      int
}

const block = 1 << 16

func (v *visited[S]) at(i int) *S { return &v.blocks[i/block][i%block] }

// slot is where s is in the table, or where it belongs.
func (v *visited[S]) slot(s *S) int {
	mask := len(v.table) - 1
	i := int(maphash.Comparable(v.seed, *s)&math.MaxInt32) & mask
	for v.table[i] != 0 && *v.at(int(v.table[i] - 1)) != *s {
		i = (i + 1) & mask
	}
	return i
}

func (v *visited[S]) add(s *S, from int, by Label) {
	if v.n*2 >= len(v.table) {
		v.table = make([]int32, len(v.table)*2)
		for i := range v.n {
			v.table[v.slot(v.at(i))] = int32(i + 1)
		}
	}
	i := v.slot(s)
	if v.table[i] != 0 {
		return
	}
	if v.n%block == 0 {
		v.blocks = append(v.blocks, make([]S, block))
	}
	*v.at(v.n) = *s
	v.from = append(v.from, int32(from)) //nolint:gosec // as above
	v.by = append(v.by, by)
	v.n++
	v.table[i] = int32(v.n) //nolint:gosec // as above
}
