package cinderapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// maxQuoted is how many characters of a value a fault repeats.
const maxQuoted = 300

// clip shortens what a fault repeats of a request.
func clip(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	r := []rune(s)
	if len(r) <= maxQuoted {
		return s
	}
	return string(r[:maxQuoted]) + "..."
}

// show is a decoded JSON value as Python's str tells it, which is how Cinder's
// faults do.
func show(v any) string {
	if s, ok := v.(string); ok {
		return clip(s)
	}
	return clip(repr(v))
}

// repr is a decoded JSON value as Python's repr tells it. Keys are sorted.
func repr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return reprString(v)
	case json.Number:
		return v.String()
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = repr(e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		parts := make([]string, 0, len(v))
		for _, k := range sortedKeys(v) {
			parts = append(parts, reprString(k)+": "+repr(v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	default:
		return fmt.Sprint(v)
	}
}

func reprString(s string) string {
	quote := '\''
	if strings.ContainsRune(s, '\'') && !strings.ContainsRune(s, '"') {
		quote = '"'
	}
	var b strings.Builder
	b.WriteRune(quote)
	for _, r := range s {
		switch {
		case r == quote || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteRune(quote)
	return b.String()
}

// quoted is repr of each, with commas.
func quoted(names []string) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = reprString(n)
	}
	return strings.Join(parts, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// pythonMap reads a map of strings that a client wrote as Python does: {'k': 'v'},
// which is JSON but for its quotes.
func pythonMap(s string) (map[string]string, bool) {
	m := map[string]string{}
	p := &literal{rest: s}
	if !p.take('{') {
		return nil, false
	}
	for !p.take('}') {
		if len(m) > 0 && !p.take(',') {
			return nil, false
		}
		k, ok := p.text()
		if !ok || !p.take(':') {
			return nil, false
		}
		v, ok := p.text()
		if !ok {
			return nil, false
		}
		m[k] = v
	}
	return m, p.rest == ""
}

// literal is what is left of a Python literal.
type literal struct{ rest string }

// take takes c and the space around it, when it is next.
func (p *literal) take(c byte) bool {
	p.rest = strings.TrimSpace(p.rest)
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = strings.TrimSpace(p.rest[1:])
	return true
}

// text takes a string. Of escapes it knows those of quotes and the backslash.
func (p *literal) text() (string, bool) {
	p.rest = strings.TrimSpace(strings.TrimPrefix(p.rest, "u"))
	if p.rest == "" || p.rest[0] != '\'' && p.rest[0] != '"' {
		return "", false
	}
	quote := p.rest[0]
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case quote:
			p.rest = p.rest[i+1:]
			return b.String(), true
		case '\\':
			i++
			if i == len(p.rest) || !strings.ContainsRune(`'"\`, rune(p.rest[i])) {
				return "", false
			}
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}
