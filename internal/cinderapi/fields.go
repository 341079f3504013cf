package cinderapi

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// fields is an object of a body that its schema has found right.
type fields map[string]any

// has says whether a key is there, also with null.
func (f fields) has(key string) bool {
	_, ok := f[key]
	return ok
}

// text is a string, "" when it is null or not there.
func (f fields) text(key string) string {
	s, ok := f[key].(string)
	if !ok {
		return ""
	}
	return s
}

// name is the first of those keys that is there, without the space around it.
func (f fields) name(keys ...string) string {
	for _, k := range keys {
		if f.has(k) {
			return strings.TrimSpace(f.text(k))
		}
	}
	return ""
}

// change is name for an update: nil when none of the keys is there.
func (f fields) change(keys ...string) *string {
	if !slices.ContainsFunc(keys, f.has) {
		return nil
	}
	s := f.name(keys...)
	return &s
}

// uuid is a UUID in its usual form, "" when it is null or not there.
func (f fields) uuid(key string) string { return canonical(f.text(key)) }

// truth is a truth value in one of its forms.
func (f fields) truth(key string) bool {
	switch v := f[key].(type) {
	case bool:
		return v
	case string:
		return slices.Contains(trueWords, v)
	default:
		return false
	}
}

// integer is an integer, also one in a string; 0 when it is null or not there.
func (f fields) integer(key string) int64 {
	var s string
	switch v := f[key].(type) {
	case json.Number:
		s = v.String()
	case string:
		s = v
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// metadata is the metadata, nil when it is null or not there.
func (f fields) metadata() map[string]string {
	o, ok := f["metadata"].(map[string]any)
	if !ok {
		return nil
	}
	return fields(o).pairs()
}

// pairs are those keys whose values are strings.
func (f fields) pairs() map[string]string {
	m := make(map[string]string, len(f))
	for k, v := range f {
		if s, ok := v.(string); ok {
			m[k] = s
		}
	}
	return m
}
