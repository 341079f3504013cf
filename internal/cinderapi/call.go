package cinderapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/cairnbackup/cairn/internal/identity"
)

// call is one request on its way to its answer. It lives as long as that.
type call struct {
	api  *api
	r    *http.Request
	log  *slog.Logger
	id   string // of the request
	base string // URL of the root, for links

	path    []string
	caller  identity.Caller
	known   bool // the caller
	version minor

	route  *route
	params map[string]string // of the path
	object string            // ID of what is changed, when the path does not say it
	query  url.Values        // once it was asked for
	read   *decoded          // the body, once it was asked for
	types  map[string]string // IDs of volume types by name, once they were asked for
}

func (c *call) ctx() context.Context { return c.r.Context() }

// service does what is asked.
func (c *call) service() Service { return c.api.Service }

// since says whether the request is of microversion 3.n or later.
func (c *call) since(n minor) bool { return c.version >= n }

// admin refuses callers who are not administrators. what is Cinder's name of the
// policy.
func (c *call) admin(what string) error {
	if !c.caller.Admin {
		return Forbidden(what)
	}
	return nil
}

// authError is an error of Authenticate.
type authError struct{ cause error }

// Error is the cause's.
func (e authError) Error() string { return "authenticate: " + e.cause.Error() }

// Unwrap returns the cause.
func (e authError) Unwrap() error { return e.cause }

func (c *call) authenticate() error {
	caller, err := c.api.Authenticate(c.r)
	if err != nil {
		return authError{err}
	}
	c.caller, c.known = caller, true
	return nil
}

// identitySilent is told when nobody can say now who calls, or for whom.
const identitySilent = "The identity service cannot be asked now: try again."

// unauthenticated is the answer to a request whose caller is not known. Of errors
// of ours nothing is told.
func (c *call) unauthenticated(ctx context.Context, e authError) answer {
	status, text := http.StatusUnauthorized, "The request you have made requires authentication."
	var s HTTPStatuser
	if errors.As(e.cause, &s) && s.HTTPStatus() >= 400 && s.HTTPStatus() < 600 {
		status = s.HTTPStatus()
	} else if ctx.Err() != nil {
		status = http.StatusServiceUnavailable
	}
	level := slog.LevelInfo
	switch {
	case status >= 500:
		level, text = slog.LevelError, identitySilent
	case s != nil:
		text = e.cause.Error()
	}
	c.log.LogAttrs(ctx, level, "caller is not known", slog.Int("status", status), slog.Any("error", withCause(e.cause)))
	if status != http.StatusUnauthorized {
		ans := answerOf(&Fault{status, text})
		if refusal, is := errors.AsType[*identity.Error](e.cause); is && refusal.RetryAfter > 0 {
			ans.header = http.Header{"Retry-After": {strconv.FormatInt(int64((refusal.RetryAfter+time.Second-1)/time.Second), 10)}}
		}
		return ans
	}
	at := c.api.AuthURL
	if at == "" {
		at = c.base + "/identity"
	}
	return answer{
		status: status,
		body:   object{"error": object{"code": status, "title": "Unauthorized", "message": text}},
		header: http.Header{"Www-Authenticate": {`Keystone uri="` + at + `"`}},
	}
}

// withCause is an error of identity with what it does not tell users.
func withCause(err error) error {
	if e, is := errors.AsType[*identity.Error](err); is && e.Cause != nil {
		return fmt.Errorf("%w (%w)", err, e.Cause)
	}
	return err
}

// find finds the route of a path below /volume/v3. The project before it may be
// left out; one that is not the caller's is refused, administrators too.
func (c *call) find(path []string) error {
	switch {
	case len(path) > 1 && path[0] == c.caller.ProjectID && isResource(path[1]):
		path = path[1:]
	case len(path) > 0 && isResource(path[0]):
	case len(path) > 1 && isResource(path[1]):
		return Invalid("Malformed request url")
	default:
		return noRoute()
	}
	method := c.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for i := range routes {
		if rt := &routes[i]; rt.method == method && c.since(rt.since) {
			if params, ok := rt.match(path); ok {
				c.route, c.params = rt, params
				return nil
			}
		}
	}
	return noRoute()
}

// audit tells of a change, or of one that was refused.
func (c *call) audit(ctx context.Context, ans answer, err error) {
	if c.api.Audit == nil || !c.known || c.route == nil || c.route.action == "" {
		return
	}
	e := Entry{Caller: c.caller, RequestID: c.id, Action: c.route.action, Object: Object{c.route.object, c.object}, Status: ans.status}
	if e.Object.ID == "" {
		e.Object.ID = c.params["id"]
	}
	if err != nil {
		e.Fault = faultOf(err).Message
	}
	// What was done is told also when the client has hung up meanwhile.
	c.api.Audit(context.WithoutCancel(ctx), e)
}

// The limits of a body: Cinder's of its size, and what is nested deeper than any
// body has to be.
const (
	maxBody  = 114688
	maxDepth = 16
)

// body reads and checks the body, and returns the object under its one key; nil
// when that is null.
func (c *call) body(key string, s *schema) (fields, error) { return c.bodyOf(key, in(key, s)) }

// bodyOf is body for a schema of the whole body, which requires the key.
func (c *call) bodyOf(key string, whole *schema) (fields, error) {
	m, err := c.decode()
	if err != nil {
		return nil, err
	}
	if err := whole.check("", m); err != nil {
		return nil, err
	}
	o, ok := m.(map[string]any)
	if !ok {
		return nil, Invalid("Malformed request body")
	}
	f, ok := o[key].(map[string]any)
	if !ok {
		return nil, nil
	}
	return f, nil
}

// decoded is a body: one JSON value, or what is wrong with it.
type decoded struct {
	value any
	err   error
}

// decode returns the body's value. It reads it once.
func (c *call) decode() (any, error) {
	if c.read == nil {
		v, err := c.readBody()
		c.read = &decoded{v, err}
	}
	return c.read.value, c.read.err
}

func (c *call) readBody() (any, error) {
	if t := c.r.Header.Get("Content-Type"); t != "" {
		media, _, err := mime.ParseMediaType(t)
		if err != nil || !slices.Contains([]string{"application/json", "application/vnd.openstack.volume+json"}, media) {
			return nil, &Fault{http.StatusUnsupportedMediaType, "Unsupported Content-Type"}
		}
	}
	b, err := io.ReadAll(io.LimitReader(c.r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, Invalid("The request body was cut off.")
	case len(b) > maxBody:
		return nil, &Fault{http.StatusRequestEntityTooLarge, "Request is too large."}
	case len(b) == 0:
		return nil, Invalid("Missing request body")
	case !utf8.Valid(b):
		return nil, Invalid("Malformed request body")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil || deep(v, maxDepth) {
		return nil, Invalid("Malformed request body")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Invalid("Malformed request body")
	}
	return v, nil
}

// deep says whether v is nested deeper than n.
func deep(v any, n int) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if n == 0 || deep(e, n-1) {
				return true
			}
		}
	case []any:
		for _, e := range v {
			if n == 0 || deep(e, n-1) {
				return true
			}
		}
	}
	return false
}
