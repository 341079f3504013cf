package cinderapi

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// listing is how things of one kind are listed.
type listing[T any] struct {
	plural  string // "backups", as in paths and bodies
	what    string // "Backup", as in faults
	columns map[string]column[T]
}

// column is something of a thing by which a list can be sorted or filtered.
type column[T any] struct {
	compare func(a, b T) int                                 // nil = it does not sort
	match   func(c *call, want string) (func(T) bool, error) // nil = it does not filter
	like    func(t T) string                                 // nil = no "name~"
	since   minor                                            // that the filter is there
	admin   bool                                             // only administrators filter by it
}

// text is a column of strings.
func text[T any](get func(T) string) column[T] {
	return column[T]{
		compare: func(a, b T) int { return cmp.Compare(get(a), get(b)) },
		match: func(_ *call, want string) (func(T) bool, error) {
			return func(t T) bool { return get(t) == want }, nil
		},
		like: get,
	}
}

// list answers a list of all, which are what the caller sees: those that match the
// filters, in order, cut to the page. view makes the body of one.
func list[T any](c *call, l *listing[T], all []T, view func(T) object, tail string) (answer, error) {
	p, err := c.page()
	if err != nil {
		return answer{}, err
	}
	order, err := l.order(p.sort)
	if err != nil {
		return answer{}, err
	}
	found, err := l.filter(c, all)
	if err != nil {
		return answer{}, err
	}
	slices.SortFunc(found, order)
	count := len(found)
	if p.marker != "" {
		i := slices.IndexFunc(all, func(t T) bool { return l.id(t) == canonical(p.marker) })
		if i < 0 {
			return answer{}, NotFound(l.what, clip(p.marker))
		}
		// The marker need not match the filters itself.
		mark := all[i]
		at, there := slices.BinarySearchFunc(found, mark, order)
		if there {
			at++
		}
		found = found[at:]
	}
	found = found[min(p.offset, len(found)):]
	more := len(found) > p.limit && p.limit > 0
	found = found[:min(p.limit, len(found))]

	items := make([]object, len(found))
	for i, t := range found {
		items[i] = view(t)
	}
	body := object{l.plural: items}
	if more {
		body[l.plural+"_links"] = []object{{"rel": "next", "href": c.next(l.plural+tail, l.id(found[len(found)-1]))}}
	}
	if p.count {
		body["count"] = count
	}
	return answer{status: http.StatusOK, body: body}, nil
}

// id is a thing's ID.
func (l *listing[T]) id(t T) string { return l.columns["id"].like(t) }

// order compares by keys, and by time of creation and ID at last: no two are equal.
func (l *listing[T]) order(keys []sortKey) (func(a, b T) int, error) {
	for _, last := range []string{"created_at", "id"} {
		if !slices.ContainsFunc(keys, func(k sortKey) bool { return k.name == last }) {
			keys = append(keys, sortKey{last, keys[0].desc})
		}
	}
	compares := make([]func(a, b T) int, len(keys))
	for i, k := range keys {
		if compares[i] = l.columns[k.name].compare; compares[i] == nil {
			return nil, invalidInput("Sort key supplied is invalid: %s", clip(k.name))
		}
	}
	return func(a, b T) int {
		for i, compare := range compares {
			if n := compare(a, b); n != 0 {
				if keys[i].desc {
					return -n
				}
				return n
			}
		}
		return 0
	}, nil
}

// noFilters are the parameters of a list that are no filters. The last is a
// filter of Cinder that matches images, of which there are none.
var noFilters = []string{"limit", "offset", "marker", "sort", "sort_key", "sort_dir", "with_count", "all_tenants", "glance_metadata"}

// filter returns those of all that match each filter of the request.
func (l *listing[T]) filter(c *call, all []T) ([]T, error) {
	var tests []func(T) bool
	var unknown []string
	for _, key := range sortedKeys(c.values()) {
		if slices.Contains(noFilters, key) {
			continue
		}
		name, like := strings.CutSuffix(key, "~")
		col := l.columns[name]
		switch {
		case col.since > c.version || col.admin && !c.caller.Admin:
			unknown = append(unknown, key)
		case like && c.since(34) && col.like != nil:
			want := strings.ToLower(c.param(key))
			tests = append(tests, func(t T) bool { return strings.Contains(strings.ToLower(col.like(t)), want) })
		case !like && col.match != nil:
			test, err := col.match(c, c.param(key))
			if err != nil {
				return nil, err
			}
			tests = append(tests, test)
		default:
			unknown = append(unknown, key)
		}
	}
	// What is not known was ignored before 3.31.
	if len(unknown) > 0 && c.since(31) {
		return nil, Invalid("Invalid filters %s are found in query options.", clip(strings.Join(unknown, ",")))
	}
	found := make([]T, 0, len(all))
	for _, t := range all {
		if !slices.ContainsFunc(tests, func(test func(T) bool) bool { return !test(t) }) {
			found = append(found, t)
		}
	}
	return found, nil
}

// next is the link to what follows the marker.
func (c *call) next(path, marker string) string {
	q := url.Values{}
	for k, v := range c.values() {
		if k != "offset" { // which was counted from the marker before
			q[k] = v
		}
	}
	q.Set("marker", marker)
	return c.projectURL("/volume/v3/") + "/" + path + "?" + q.Encode()
}
