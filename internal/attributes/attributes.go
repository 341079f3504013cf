// Package attributes has the rules for the opaque notes that a control plane
// keeps with a volume or a backup: one JSON object, whose content nobody below
// the control plane looks at.
package attributes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// MaxBytes is the most that attributes may have, in their normal form.
const MaxBytes = 64 << 10

// maxDepth bounds how deep values are nested, so that whatever the attributes
// are put into can still be read: JSON decoders have limits of their own.
const maxDepth = 64

// Normal returns the attributes in the one form in which they are kept, compared
// and shown: without white space, and with what could be taken for HTML escaped,
// as encoding/json writes them. Without any (nothing, null or {}) that is nil.
// The error says in a sentence what is wrong with them.
func Normal(raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("the attributes are not UTF-8")
	}
	var b json.RawMessage
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, fmt.Errorf("the attributes are not JSON: %w", err)
	}
	b, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("the attributes are not JSON: %w", err)
	}
	switch {
	case bytes.Equal(b, []byte("null")) || bytes.Equal(b, []byte("{}")):
		return nil, nil
	case b[0] != '{':
		return nil, errors.New("the attributes are not a JSON object")
	case len(b) > MaxBytes:
		return nil, fmt.Errorf("the attributes have %d bytes, and %d is the limit: keep less in them", len(b), MaxBytes)
	case depth(b) > maxDepth:
		return nil, fmt.Errorf("the attributes are nested more than %d deep", maxDepth)
	}
	return b, nil
}

// depth is how deep the values of valid JSON are nested.
func depth(b []byte) int {
	deepest, now, inString := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}
