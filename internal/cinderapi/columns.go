package cinderapi

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// integer is a column of integers.
func integer[T any](get func(T) int64) column[T] {
	return column[T]{
		compare: func(a, b T) int { return cmp.Compare(get(a), get(b)) },
		match: func(_ *call, want string) (func(T) bool, error) {
			n, err := strconv.ParseInt(strings.TrimSpace(want), 10, 64)
			return func(t T) bool { return err == nil && get(t) == n }, nil
		},
	}
}

// moment is a column of times, filtered since 3.60: "gt:2026-01-02T15:04:05".
func moment[T any](get func(T) time.Time) column[T] {
	return column[T]{compare: func(a, b T) int { return get(a).Compare(get(b)) }, since: 60, match: func(_ *call, want string) (func(T) bool, error) {
		var tests []func(time.Time) bool
		for part := range strings.SplitSeq(want, ",") {
			test, err := momentTest(part)
			if err != nil {
				return nil, err
			}
			tests = append(tests, test)
		}
		return func(t T) bool {
			return !slices.ContainsFunc(tests, func(test func(time.Time) bool) bool { return !test(get(t)) })
		}, nil
	}}
}

func momentTest(part string) (func(time.Time) bool, error) {
	op, stamp, found := strings.Cut(part, ":")
	signs, ok := map[string][]int{"gt": {1}, "gte": {0, 1}, "eq": {0}, "neq": {-1, 1}, "lt": {-1}, "lte": {-1, 0}}[op]
	if !found || !ok {
		op, stamp, signs = "eq", part, []int{0}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if at, err := time.Parse(layout, stamp); err == nil {
			return func(t time.Time) bool { return !t.IsZero() && slices.Contains(signs, t.Compare(at)) }, nil
		}
	}
	return nil, invalidInput("%s:%s is no comparison with a time in ISO 8601.", op, clip(stamp))
}

// forAdmins is a column by which only administrators filter.
func forAdmins[T any](c column[T]) column[T] {
	c.admin = true
	return c
}

// zone is the column of the availability zone, which is the same everywhere.
func zone[T any]() column[T] {
	return column[T]{
		compare: func(T, T) int { return 0 },
		match: func(c *call, want string) (func(T) bool, error) {
			same := want == c.service().Zone()
			return func(T) bool { return same }, nil
		},
	}
}

// none is a column that has nothing in it.
func none[T any]() column[T] {
	return column[T]{match: func(*call, string) (func(T) bool, error) { return func(T) bool { return false }, nil }}
}

// matchTruth filters by what is true, or not true, of everything.
func matchTruth[T any](name string, is bool) func(*call, string) (func(T) bool, error) {
	return func(c *call, _ string) (func(T) bool, error) {
		want, err := c.truthParam(name)
		return func(T) bool { return want == is }, err
	}
}

// matchMetadata filters by pairs that a thing has, in JSON or as Python writes them.
func matchMetadata[T any](get func(T) map[string]string) func(*call, string) (func(T) bool, error) {
	return func(_ *call, want string) (func(T) bool, error) {
		pairs, ok := pythonMap(want)
		if !ok {
			return nil, invalidInput("metadata=%s", clip(want))
		}
		return func(t T) bool {
			have := get(t)
			for k, v := range pairs {
				if s, ok := have[k]; !ok || s != v {
					return false
				}
			}
			return true
		}, nil
	}
}

// matchBootable filters volumes; before 3.2 any word but "false" meant true.
func matchBootable(c *call, want string) (func(Volume) bool, error) {
	var is bool
	switch {
	case slices.Contains([]string{"T", "True", "true", "1"}, want), !c.since(2) && want != "false" && want != "False":
		is = true
	case slices.Contains([]string{"F", "False", "false", "0"}, want):
	default:
		return nil, invalidInput("bootable={%s}", clip(want))
	}
	return func(v Volume) bool { return v.Bootable == is }, nil
}

// word is a truth value as Cinder writes it in a string.
func word(b bool) string { return strconv.FormatBool(b) }

// filters are the names by which a list of things can be filtered by anybody.
func (l *listing[T]) filters() []string {
	names := slices.Sorted(maps.Keys(l.columns))
	return slices.DeleteFunc(names, func(n string) bool { return l.columns[n].match == nil || l.columns[n].admin })
}
