package cinderapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/identity"
)

// Options are what a handler is made of. Service and Authenticate are needed.
type Options struct {
	Service Service
	// Authenticate says who makes a request. Its errors may carry the status to
	// answer with, see [HTTPStatuser]; others mean 401.
	Authenticate func(*http.Request) (identity.Caller, error)
	// Explain makes an error of the service that is no fault one, if callers can be told
	// more than that it failed, and returns all others as they are; nil explains none.
	Explain func(error) error
	// Logger gets a line per request; nil is none.
	Logger *slog.Logger
	// Public is the URL that clients reach the handler's root by, for links; "" is
	// the host that a request names.
	Public string
	// AuthURL is where a refused client is told to ask for a token; "" is
	// /identity at the same place.
	AuthURL string
	// Project returns the ID of the project that has this ID or name, for quotas, when
	// the administrator by asks for it in r; nil, or "" returned, takes what was named
	// as an ID. Its errors may carry a status, as those of Authenticate.
	Project func(r *http.Request, by identity.Caller, name string) (string, error)
	// Audit is called for each request of a known caller that would change
	// something, after its result is known and before it is answered.
	Audit func(context.Context, Entry)
}

// HTTPStatuser is an error that knows the status of the answer it leads to.
type HTTPStatuser interface{ HTTPStatus() int }

// Entry is one change, or an attempt at one, for the audit log.
type Entry struct {
	Caller    identity.Caller
	RequestID string
	Action    string // "backup.create"
	Object    Object
	Status    int    // of the answer
	Fault     string // what the caller was told, "" when it succeeded
}

// Object is what a change was made to.
type Object struct{ Type, ID string } // the ID is "" when there was none

// api is the handler.
type api struct {
	Options
	metadata sync.Mutex // held while metadata is read, changed and written
}

// New returns the handler of everything under /volume, and of the versions
// document at /image.
func New(o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Public = strings.TrimSuffix(o.Public, "/")
	return &api{Options: o}
}

// object is a JSON object of an answer.
type object = map[string]any

// answer is what a request leads to.
type answer struct {
	status int
	body   any // nil = none
	header http.Header
}

var globalID = regexp.MustCompile(`^req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// ServeHTTP answers one request, and logs it.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := "req-" + uuid.NewString()
	a.answer(w, r.WithContext(WithRequestID(r.Context(), id)), id)
}

func (a *api) answer(w http.ResponseWriter, r *http.Request, id string) {
	begun := time.Now()
	c := &call{api: a, r: r, id: id, base: a.Public}
	if c.base == "" {
		c.base = hostURL(r)
	}
	c.log = a.Logger.With(slog.String("request_id", c.id))
	if g := r.Header.Get("X-Openstack-Request-Id"); globalID.MatchString(g) {
		c.log = c.log.With(slog.String("global_request_id", g))
	}
	ans, err := c.serve()
	if err != nil && c.known && a.Explain != nil {
		err = a.Explain(err)
	}
	if err != nil {
		ans = c.refuse(r.Context(), err)
	}
	c.audit(r.Context(), ans, err)
	status := c.write(r.Context(), w, ans)
	level := slog.LevelDebug
	if c.route != nil && c.route.action != "" {
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", status),
		slog.String("user", c.caller.UserID), slog.String("project", c.caller.ProjectID),
		slog.Duration("duration", time.Since(begun)),
	}
	if err != nil && c.known {
		attrs = append(attrs, slog.String("fault", faultOf(err).Message))
	}
	c.log.LogAttrs(r.Context(), level, "API request", attrs...)
}

// hostURL is the URL of the root as the client named it.
func hostURL(r *http.Request) string {
	u := url.URL{Scheme: "http", Host: r.Host}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	return u.String()
}

// refuse is the answer to a request that failed. The cause of an error of ours is
// logged here and told nobody.
func (c *call) refuse(ctx context.Context, err error) answer {
	if e, ok := errors.AsType[authError](err); ok {
		return c.unauthenticated(ctx, e)
	}
	f := faultOf(err)
	if f.Status >= 500 {
		c.log.LogAttrs(ctx, slog.LevelError, "API request failed", slog.Int("status", f.Status), slog.Any("error", err))
	}
	return answerOf(f)
}

// panicked is an error of ours that a handler did not return.
type panicked struct {
	value any
	stack []byte
}

// Error says what was said, and where.
func (p panicked) Error() string {
	s, ok := p.value.(string)
	if e, is := p.value.(error); is {
		s, ok = e.Error(), true
	}
	if !ok {
		s = "a value that is no error"
	}
	return "panic: " + s + "\n" + string(p.stack)
}

// serve does what a request asks for.
func (c *call) serve() (ans answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			ans, err = answer{}, panicked{p, debug.Stack()}
		}
	}()
	c.path, err = segments(c.r.URL)
	if err != nil {
		return answer{}, err
	}
	if ans, ok := c.discovery(); ok {
		return ans, nil
	}
	if len(c.path) < 2 || c.path[0] != "volume" || c.path[1] != "v3" {
		return answer{}, noRoute()
	}
	if err = c.authenticate(); err != nil {
		return answer{}, err
	}
	if c.version, err = askedVersion(c.r.Header); err != nil {
		return answer{}, err
	}
	if err = c.find(c.path[2:]); err != nil {
		return answer{}, err
	}
	if c.route.method != get && c.caller.ReadOnly() {
		return answer{}, Forbidden(cmp.Or(strings.ReplaceAll(c.route.action, ".", ":"), c.route.path))
	}
	return c.route.do(c)
}

// discovery answers the requests that tell what there is, which need no token.
func (c *call) discovery() (answer, bool) {
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		return answer{}, false
	}
	switch strings.TrimSuffix(strings.Join(c.path, "/"), "/") {
	case "volume":
		return answer{status: http.StatusMultipleChoices, body: versions(c.base)}, true
	case "volume/v3":
		return answer{status: http.StatusOK, body: versions(c.base)}, true
	case "image":
		return answer{status: http.StatusMultipleChoices, body: imageVersions(c.base)}, true
	}
	return answer{}, false
}

// segments are the parts of a path, each unescaped by itself: an ID may hold an
// escaped slash.
func segments(u *url.URL) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, p := range parts {
		s, err := url.PathUnescape(p)
		if err != nil {
			return nil, Invalid("Malformed request url")
		}
		parts[i] = s
	}
	return parts, nil
}

// write sends an answer and returns the status it went with.
func (c *call) write(ctx context.Context, w http.ResponseWriter, ans answer) int {
	var body []byte
	if ans.body != nil {
		b, err := json.Marshal(ans.body)
		if err != nil {
			c.log.LogAttrs(ctx, slog.LevelError, "API answer cannot be written", slog.Any("error", err))
			ans, b = answerOf(&Fault{http.StatusInternalServerError, internal}), []byte(`{"computeFault":{"code":500,"message":"`+internal+`"}}`)
		}
		body = b
	}
	h := w.Header()
	maps.Copy(h, ans.header)
	h.Set("X-Openstack-Request-Id", c.id)
	h.Set("X-Compute-Request-Id", c.id)
	h.Set("Vary", "OpenStack-API-Version")
	h.Set(versionHeader, "volume "+c.version.String())
	if body != nil {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(ans.status)
	if c.r.Method != http.MethodHead {
		// Who has hung up is not told anything.
		_, _ = w.Write(body)
	}
	return ans.status
}
