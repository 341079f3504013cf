package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxBody is the most that is read of a request.
const maxBody = 64 << 10

// authRequest is a request for a token. A field that is not there is nil.
type authRequest struct {
	methods  []string
	byUser   bool // the method password has a user
	user     ref
	secret   *string
	token    string
	unscoped bool
	project  *ref
	other    string // a scope that this service does not have: "domain", "system"
}

// ref names a user or a project, by ID or by name and domain.
type ref struct{ id, name, domain *string }

// readBody returns the body of a request, which has to be JSON.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if kind, _, err := mime.ParseMediaType(ct); err != nil || kind != "application/json" {
			return nil, expecting("application/json", "Content-Type header")
		}
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, refuse(http.StatusRequestEntityTooLarge, "Request is too large.")
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "The body of the request could not be read.")
	}
	return b, nil
}

// expecting is Keystone's sentence for what is missing.
func expecting(attribute, target string) *Error {
	return refuse(http.StatusBadRequest, "Expecting to find %s in %s. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error.", attribute, target)
}

// parseAuth understands the body of POST /v3/auth/tokens. It asks for what Keystone's
// schema asks for, and passes over keys that it does not know, as Keystone does. All
// its errors are ErrInvalid.
func parseAuth(body []byte) (*authRequest, error) {
	if len(body) == 0 {
		return nil, expecting("auth", "request body")
	}
	var v any
	// The decoder would make question marks of bad UTF-8, in passwords too.
	if !utf8.Valid(body) || json.Unmarshal(body, &v) != nil {
		return nil, expecting("valid JSON", "request body")
	}
	top, ok := v.(map[string]any)
	if !ok {
		return nil, expecting("valid JSON", "request body")
	}
	if top["auth"] == nil {
		return nil, expecting("auth", "request body")
	}
	p := &parser{}
	auth := p.object(top, "", "auth")
	identity := p.object(auth, "", "identity")
	a := &authRequest{}
	if p.err == nil && identity == nil {
		return nil, refuse(http.StatusBadRequest, "'identity' is a required property")
	}
	a.methods = p.strings(identity, "identity", "methods")
	p.credentials(a, identity)
	p.scope(a, auth)
	if p.err != nil {
		return nil, p.err
	}
	for _, m := range a.methods {
		if identity[m] == nil {
			return nil, expecting(m, "identity")
		}
	}
	if slices.Contains(a.methods, "password") && !a.byUser {
		return nil, expecting("user", "password")
	}
	return a, nil
}

// parser walks through decoded JSON and keeps the first error. Its paths are
// Keystone's, from below "auth".
type parser struct{ err error }

func (p *parser) wrong(path, key string, v any, want string) {
	if p.err != nil {
		return
	}
	// Not the value, which may be a password.
	kind := map[string]string{"string": "a string", "float64": "a number", "bool": "a boolean", "<nil>": "null", "[]interface {}": "an array", "map[string]interface {}": "an object"}[fmt.Sprintf("%T", v)]
	p.err = refuse(http.StatusBadRequest, "Invalid input for field '%s': %s is not of type '%s'", strings.TrimPrefix(path+"/"+key, "/"), kind, want)
}

// object is the object at a key, nil when there is none.
func (p *parser) object(in map[string]any, path, key string) map[string]any {
	v, ok := in[key]
	if !ok {
		return nil
	}
	o, ok := v.(map[string]any)
	if !ok {
		p.wrong(path, key, v, "object")
	}
	return o
}

// text is the string at a key, nil when there is none.
func (p *parser) text(in map[string]any, path, key string) *string {
	v, ok := in[key]
	if !ok {
		return nil
	}
	s, ok := v.(string)
	if !ok {
		p.wrong(path, key, v, "string")
	}
	return &s
}

// strings is the list of strings at a key, which has to be there.
func (p *parser) strings(in map[string]any, path, key string) []string {
	list, ok := in[key].([]any)
	if !ok {
		if _, there := in[key]; !there && p.err == nil {
			p.err = refuse(http.StatusBadRequest, "'%s' is a required property", key)
		}
		p.wrong(path, key, in[key], "array")
		return nil
	}
	var out []string
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			p.wrong(path, fmt.Sprintf("%s/%d", key, i), v, "string")
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// ref is what an object names; it has to have an ID or a name.
func (p *parser) ref(in map[string]any, path string) ref {
	r := ref{id: p.text(in, path, "id"), name: p.text(in, path, "name")}
	if r.id == nil && r.name == nil && p.err == nil {
		p.err = refuse(http.StatusBadRequest, "Invalid input for field %s: id or name must be present.", path)
	}
	if domain := p.object(in, path, "domain"); domain != nil {
		d := p.ref(domain, path+"/domain")
		switch {
		case d.id != nil:
			r.domain = d.id
		case d.name != nil && *d.name == domainName:
			id := domainID
			r.domain = &id
		default: // no domain here has another name
			none := ""
			r.domain = &none
		}
	}
	return r
}
