package identity

import (
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// root is where the service is below the agent's address.
const root = "/identity"

// call is a request that is being answered.
type call struct {
	s    *Service
	r    *http.Request
	w    http.ResponseWriter
	base string   // of URLs in the answer
	args []string // what "*" in the route's path stands for
}

// route is a path and what answers it, by method. Whatever takes GET takes HEAD.
type route struct {
	path    []string // "*" = any one segment
	methods map[string]func(*call) error
}

func (s *Service) table() []route {
	on := func(path string, methods map[string]func(*call) error) route {
		if get, ok := methods[http.MethodGet]; ok {
			methods[http.MethodHead] = get
		}
		return route{strings.Split(path, "/"), methods}
	}
	get := func(path string, answer func(*call) error) route {
		return on(path, map[string]func(*call) error{http.MethodGet: answer})
	}
	const v3 = root + "/v3"
	return []route{
		get(root, (*call).versions),
		get("/v2", (*call).versions),
		get("/v2.0", (*call).versions),
		get(v3, (*call).version),
		on(v3+"/auth/tokens", map[string]func(*call) error{
			http.MethodPost: (*call).logIn, http.MethodGet: (*call).validate, http.MethodDelete: (*call).revoke,
		}),
		get(v3+"/auth/projects", (*call).ownProjects),
		get(v3+"/auth/catalog", (*call).ownCatalog),
		get(v3+"/projects", (*call).projects),
		get(v3+"/projects/*", (*call).project),
		get(v3+"/users", (*call).users),
		get(v3+"/users/*", (*call).user),
		get(v3+"/users/*/projects", (*call).userProjects),
		get(v3+"/domains", (*call).domains),
		get(v3+"/domains/*", (*call).domain),
	}
}

// ServeHTTP implements [http.Handler]: /identity and below, /v2 and /v2.0.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Vary", "X-Auth-Token")
	h.Set("X-Openstack-Request-Id", "req-"+uuid.NewString())
	base, err := s.BaseURL(r)
	if err == nil {
		c := &call{s: s, r: r, w: w, base: base}
		err = c.dispatch()
	}
	if err == nil {
		return
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Status >= http.StatusInternalServerError {
		cause := err
		if ok && e.Cause != nil {
			cause = e.Cause
		}
		s.log.LogAttrs(r.Context(), slog.LevelError, "an identity request failed",
			slog.String("request_id", h.Get("X-Openstack-Request-Id")), slog.String("reason", err.Error()), slog.Any("error", cause))
	}
	WriteError(w, err, base)
}

func (c *call) dispatch() error {
	path := strings.Split(strings.TrimSuffix(c.r.URL.Path, "/"), "/")
	for _, rt := range c.s.routes {
		if !c.fits(rt.path, path) {
			continue
		}
		answer, ok := rt.methods[c.r.Method]
		if !ok {
			c.w.Header().Set("Allow", strings.Join(slices.Sorted(maps.Keys(rt.methods)), ", "))
			return refuse(http.StatusMethodNotAllowed, "The method is not allowed for the requested URL.")
		}
		return answer(c)
	}
	return refuse(http.StatusNotFound, "The resource could not be found: this agent serves %s%s/v3.", c.base, root)
}

// fits matches a path with a route's and takes its arguments.
func (c *call) fits(pattern, path []string) bool {
	if len(pattern) != len(path) {
		return false
	}
	c.args = c.args[:0]
	for i, p := range pattern {
		switch {
		case p == "*" && path[i] != "":
			c.args = append(c.args, path[i])
		case p != path[i]:
			return false
		}
	}
	return true
}

// send answers with JSON.
func (c *call) send(status int, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return writeJSON(c.w, status, b)
}

func writeJSON(w http.ResponseWriter, status int, body []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client has gone: nobody is left to be told
	return nil
}

// WriteError answers a request with an error of this package, as Keystone and its
// middleware in other services do. base is the address for WWW-Authenticate.
func WriteError(w http.ResponseWriter, err error, base string) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = refuse(http.StatusInternalServerError, "An unexpected error prevented the server from fulfilling your request.")
	}
	if e.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Keystone uri="`+base+root+`/v3"`)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	body, merr := json.Marshal(map[string]any{"error": map[string]any{
		"code": e.Status, "message": e.Text, "title": http.StatusText(e.Status),
	}})
	if merr != nil { // strings and a number always can be
		body = []byte(`{}`)
	}
	_ = writeJSON(w, e.Status, body)
}
