package repository

import (
	"encoding/json"
	"fmt"
	"slices"
)

// A membership may be long, and one that a store made up is read before anything
// tells that it is: what it says decides how much memory an Open takes. So what
// cannot be one is found before it is decoded, and of one that is not authenticated
// yet no more is decoded than leads to the older master keys.

// membershipShape is how many elements each container of a membership's JSON may have,
// by depth: fields, entries of a list, fields of an entry, slots.
var membershipShape = []int{32, maxPlacements, 16, 32}

// maxJSONToken is longer than any string or number of a membership.
const maxJSONToken = 512

// boundJSON refuses a text in which a container has more elements than most says of
// its depth, one is nested deeper, or a token is longer than maxJSONToken. Whether
// it is JSON, the decoder says.
func boundJSON(text []byte, most []int) error {
	left := slices.Clone(most)
	depth, token := 0, 0
	quoted, escaped := false, false
	for _, c := range text {
		token++
		switch {
		case token > maxJSONToken:
			return fmt.Errorf("a value of more than %d bytes: %w", maxJSONToken, errEnvelope)
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == '{', c == '[':
			if depth++; depth > len(most) {
				return fmt.Errorf("lists nested %d deep: %w", depth, errEnvelope)
			}
			copy(left[depth-1:], most[depth-1:])
			token = 0
		case c == '}', c == ']':
			if depth--; depth < 0 {
				return fmt.Errorf("no JSON: %w", errEnvelope)
			}
			token = 0
		case c == ',' && depth > 0:
			if left[depth-1]--; left[depth-1] < 1 {
				return fmt.Errorf("a list of more entries than it can have: %w", errEnvelope)
			}
			token = 0
		case c == ':':
			token = 0
		}
	}
	return nil
}

// claim is a membership of which nothing is authenticated: it has only its version
// and rotations.
func claim(object []byte) (*membership, error) {
	e, err := parseEnvelope(object)
	if err != nil {
		return nil, err
	}
	if err = boundJSON(e.payload, membershipShape); err != nil {
		return nil, err
	}
	var says struct {
		Version uint64          `json:"version"`
		Sealing []sealingRecord `json:"sealing"`
	}
	if err = json.Unmarshal(e.payload, &says); err != nil {
		return nil, fmt.Errorf("%w: %w", errEnvelope, err)
	}
	if len(says.Sealing) >= maxEpochs {
		return nil, fmt.Errorf("%d rotations: %w", len(says.Sealing), errEnvelope)
	}
	return &membership{Version: says.Version, Sealing: says.Sealing}, nil
}
