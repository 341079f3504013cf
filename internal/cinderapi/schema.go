package cinderapi

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// schema says what a value in a request's body may be: the part of JSON Schema
// that Cinder's schemas use, with its messages.
type schema struct {
	types    []string // of which it has one: "null", "boolean", "integer", "string", "object"
	maxLen   int      // of a string, in characters; 0 = no limit
	minLen   int
	pattern  *regexp.Regexp
	enum     []any
	format   string // its name, for the message
	formatOK func(string) bool
	min, max int64 // of an integer, also as a string; both 0 = no limit

	props    map[string]*schema
	required []string
	open     bool // takes keys that props does not have
	anyOf    []string
	minProps int
	maxProps int
	keys     *regexp.Regexp // of an object without props
	values   *schema        // of those keys
}

// check returns the fault of a value, or nil. at is the key it was found under, ""
// for the body itself.
func (s *schema) check(at string, v any) error {
	if f := s.self(v); f != "" {
		if at == "" {
			return Invalid("%s", f)
		}
		return Invalid("Invalid input for field/attribute %s. Value: %s. %s", clip(at), show(v), f)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	// In the order of keys, so that of several faults always the same is told.
	for _, k := range sortedKeys(m) {
		p := s.props[k]
		if p == nil && s.keys != nil && s.keys.MatchString(k) {
			p = s.values
		}
		if p == nil {
			continue
		}
		if err := p.check(k, m[k]); err != nil {
			return err
		}
	}
	return nil
}

// self is what is wrong with a value, but for what is inside of it.
func (s *schema) self(v any) string {
	if !s.hasType(v) {
		return fmt.Sprintf("%s is not of type %s", clip(repr(v)), quoted(s.types))
	}
	if s.enum != nil && !slices.Contains(s.enum, v) {
		return fmt.Sprintf("%s is not one of %s", clip(repr(v)), repr(s.enum))
	}
	switch v := v.(type) {
	case string:
		return s.text(v)
	case json.Number:
		return s.number(v.String())
	case map[string]any:
		return s.object(v)
	default:
		return ""
	}
}

func (s *schema) hasType(v any) bool {
	return s.types == nil || slices.Contains(s.types, typeOf(v))
}

// typeOf is the name of a decoded value's type.
func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "number"
		}
		return "integer"
	case map[string]any:
		return "object"
	default:
		return "array"
	}
}

func (s *schema) text(v string) string {
	n := utf8.RuneCountInString(v)
	switch {
	case s.maxLen > 0 && n > s.maxLen:
		return clip(repr(v)) + " is too long"
	case n < s.minLen:
		return repr(v) + " is too short"
	case strings.ContainsRune(v, 0): // which databases do not keep
		return clip(repr(v)) + " has a NUL character"
	case s.pattern != nil && !s.pattern.MatchString(v):
		return fmt.Sprintf("%s does not match %s", clip(repr(v)), repr(s.pattern.String()))
	case s.formatOK != nil && !s.formatOK(v):
		return fmt.Sprintf("%s is not a %s", clip(repr(v)), repr(s.format))
	}
	return s.number(v)
}

// number checks the bounds of an integer in digits.
func (s *schema) number(v string) string {
	if s.min == 0 && s.max == 0 {
		return ""
	}
	n, ok := new(big.Int).SetString(v, 10)
	switch {
	case !ok:
		return ""
	case n.Cmp(big.NewInt(s.min)) < 0:
		return fmt.Sprintf("%s is less than the minimum of %d", clip(v), s.min)
	case n.Cmp(big.NewInt(s.max)) > 0:
		return fmt.Sprintf("%s is greater than the maximum of %d", clip(v), s.max)
	}
	return ""
}

func (s *schema) object(m map[string]any) string {
	for _, k := range s.required {
		if _, ok := m[k]; !ok {
			return reprString(k) + " is a required property"
		}
	}
	if extra := s.extra(m); len(extra) > 0 && !s.open {
		verb := "were"
		if len(extra) == 1 {
			verb = "was"
		}
		return fmt.Sprintf("Additional properties are not allowed (%s %s unexpected)", clip(quoted(extra)), verb)
	}
	if len(m) < s.minProps {
		return clip(repr(m)) + " does not have enough properties"
	}
	if s.maxProps > 0 && len(m) > s.maxProps {
		return clip(repr(m)) + " has too many properties"
	}
	if s.anyOf != nil && !slices.ContainsFunc(s.anyOf, func(k string) bool { _, ok := m[k]; return ok }) {
		return clip(repr(m)) + " is not valid under any of the given schemas"
	}
	return ""
}

// extra are the keys of m that the schema does not know.
func (s *schema) extra(m map[string]any) []string {
	var extra []string
	for _, k := range sortedKeys(m) {
		if s.props[k] == nil && (s.keys == nil || !s.keys.MatchString(k)) {
			extra = append(extra, k)
		}
	}
	return extra
}
