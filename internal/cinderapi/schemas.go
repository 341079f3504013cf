package cinderapi

import (
	"encoding/base64"
	"maps"
	"math"
	"regexp"

	"github.com/google/uuid"
)

// maxPairs caps the metadata of one thing.
const maxPairs = 256

// The types of values in bodies, as Cinder has them.
var (
	isText      = &schema{types: []string{"string", "null"}, maxLen: 255}
	isUUID      = &schema{types: []string{"string"}, format: "uuid", formatOK: isUUIDLike}
	isUUIDMaybe = &schema{types: []string{"string", "null"}, format: "uuid", formatOK: isUUIDLike}
	isBool      = &schema{types: []string{"boolean", "string"}, enum: booleans()}
	isBoolMaybe = &schema{types: []string{"boolean", "string", "null"}, enum: append(booleans(), nil)}
	isSize      = &schema{types: []string{"integer", "string"}, pattern: digits, min: 1, max: math.MaxInt32}
	isSizeMaybe = &schema{types: []string{"integer", "string", "null"}, pattern: digits, min: 1, max: math.MaxInt32}

	// No control characters, no line breaks: one line.
	isDescription = &schema{types: []string{"string", "null"}, maxLen: 255, pattern: regexp.MustCompile(`^[^\p{C}\p{Zl}\p{Zp}]*$`)}

	metadataKey     = regexp.MustCompile(`^[a-zA-Z0-9-_:. ]{1,255}$`)
	metadataValue   = &schema{types: []string{"string"}, maxLen: 255}
	isMetadata      = &schema{types: []string{"object"}, keys: metadataKey, values: metadataValue, maxProps: maxPairs}
	isMetadataMaybe = &schema{types: []string{"object", "null"}, keys: metadataKey, values: metadataValue, maxProps: maxPairs}
	isMetadataItem  = &schema{types: []string{"object"}, keys: metadataKey, values: metadataValue, minProps: 1, maxProps: 1}

	digits = regexp.MustCompile(`^[0-9]+$`)
)

var (
	trueWords  = []string{"True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t"}
	falseWords = []string{"False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"}
)

// booleans are the forms of a truth value in a body.
func booleans() []any {
	all := []any{true}
	for _, w := range trueWords {
		all = append(all, w)
	}
	all = append(all, false)
	for _, w := range falseWords {
		all = append(all, w)
	}
	return all
}

// in is the schema of a body that is one object under a key.
func in(key string, s *schema) *schema {
	return &schema{types: []string{"object"}, required: []string{key}, props: map[string]*schema{key: s}}
}

// plus is the schema of an object with one more key.
func (s *schema) plus(key string, v *schema) *schema {
	more := *s
	more.props = map[string]*schema{key: v}
	maps.Copy(more.props, s.props)
	return &more
}

// isUUIDLike says whether s is a UUID in any of its written forms.
func isUUIDLike(s string) bool { return uuid.Validate(s) == nil }

// isBase64 says whether s is base64.
func isBase64(s string) bool {
	_, err := base64.StdEncoding.DecodeString(s)
	return err == nil
}

// canonical is a UUID in its usual form, and what is none as it is.
func canonical(s string) string {
	if u, err := uuid.Parse(s); err == nil && isUUIDLike(s) {
		return u.String()
	}
	return s
}
