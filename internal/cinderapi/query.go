package cinderapi

import (
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// values are the parameters after the path's "?". Parts that are no parameters are
// left out, as Cinder does.
func (c *call) values() url.Values {
	if c.query == nil {
		// What could be read is returned with the error.
		c.query, _ = url.ParseQuery(c.r.URL.RawQuery)
	}
	return c.query
}

// param is the first value of a parameter.
func (c *call) param(key string) string { return c.values().Get(key) }

// truthParam reads a parameter that is true or false; without one it is false.
func (c *call) truthParam(key string) (bool, error) {
	v := strings.ToLower(strings.TrimSpace(c.param(key)))
	switch {
	case slices.Contains([]string{"1", "t", "true", "on", "y", "yes"}, v):
		return true, nil
	case slices.Contains([]string{"", "0", "f", "false", "off", "n", "no"}, v):
		return false, nil
	default:
		return false, invalidInput("Value '%s' for '%s' is neither true nor false.", clip(c.param(key)), key)
	}
}

// maxPage is how many things an answer lists at most.
const maxPage = 1000

// page is the part of a list that is asked for.
type page struct {
	limit, offset int
	marker        string
	count         bool // the number of all
	sort          []sortKey
}

type sortKey struct {
	name string
	desc bool
}

func (c *call) page() (page, error) {
	p := page{limit: maxPage, marker: c.param("marker")}
	q := c.values()
	if q.Has("limit") {
		n, err := strconv.ParseInt(strings.TrimSpace(c.param("limit")), 10, 64)
		switch {
		case err != nil:
			return page{}, Invalid("limit param must be an integer")
		case n < 0:
			return page{}, Invalid("limit param must be positive")
		}
		p.limit = int(min(n, maxPage))
	}
	if q.Has("offset") {
		n, err := integerIn("offset", c.param("offset"), 0)
		if err != nil {
			return page{}, err
		}
		p.offset = int(n)
	}
	var err error
	if c.since(45) {
		if p.count, err = c.truthParam("with_count"); err != nil {
			return page{}, err
		}
	}
	p.sort, err = c.sortKeys()
	return p, err
}

// integerIn reads an integer that is at least lowest and fits a column of Cinder's
// database.
func integerIn(name, s string, lowest int64) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	switch {
	case err != nil:
		return 0, invalidInput("%s must be an integer.", clip(name))
	case n < lowest:
		return 0, invalidInput("%s must be >= %d", clip(name), lowest)
	case n > math.MaxInt32:
		return 0, invalidInput("%s must be <= %d", clip(name), math.MaxInt32)
	}
	return n, nil
}

// sortKeys reads in which order a list is asked for: "sort=key:dir,key" or, as it
// was before, sort_key and sort_dir. Newest first without.
func (c *call) sortKeys() ([]sortKey, error) {
	q := c.values()
	if !q.Has("sort") {
		key, dir := "created_at", "desc"
		if q.Has("sort_key") {
			key = c.param("sort_key")
		}
		if q.Has("sort_dir") {
			dir = c.param("sort_dir")
		}
		k, err := newSortKey(key, dir)
		return []sortKey{k}, err
	}
	if q.Has("sort_key") || q.Has("sort_dir") {
		return nil, Invalid("The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with the 'sort' parameter.")
	}
	var keys []sortKey
	for part := range strings.SplitSeq(c.param("sort"), ",") {
		name, dir, _ := strings.Cut(part, ":")
		if strings.TrimSpace(dir) == "" {
			dir = "desc"
		}
		k, err := newSortKey(name, dir)
		if err != nil {
			return nil, err
		}
		// A key that is there already changes nothing.
		if !slices.ContainsFunc(keys, func(have sortKey) bool { return have.name == k.name }) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func newSortKey(name, dir string) (sortKey, error) {
	k := sortKey{name: strings.TrimSpace(name)}
	switch strings.TrimSpace(dir) {
	case "asc":
	case "desc":
		k.desc = true
	default:
		return k, invalidInput("Unknown sort direction, must be one of: asc, desc")
	}
	return k, nil
}
