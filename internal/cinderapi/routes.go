package cinderapi

import (
	"net/http"
	"slices"
	"strings"
)

// route is one call of the API.
type route struct {
	method string
	path   string // below the project; {id} is any segment
	since  minor
	action string // for the audit log, "" = it changes nothing
	object string // type of what it changes
	do     func(*call) (answer, error)
}

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

// routes are all calls. Of two that match, the first counts.
var routes = slices.Concat(volumeRoutes(), snapshotRoutes(), backupRoutes(), quotaRoutes(), typeRoutes(), otherRoutes())

// resources are the first segments of the routes.
var resources = func() map[string]bool {
	m := make(map[string]bool)
	for _, r := range routes {
		first, _, _ := strings.Cut(r.path, "/")
		m[first] = true
	}
	return m
}()

func isResource(segment string) bool { return resources[segment] }

// match returns the parameters in a path when it is the route's.
func (r *route) match(path []string) (map[string]string, bool) {
	parts := strings.Split(r.path, "/")
	if len(parts) != len(path) {
		return nil, false
	}
	params := make(map[string]string)
	for i, p := range parts {
		switch {
		case strings.HasPrefix(p, "{") && path[i] != "":
			params[strings.Trim(p, "{}")] = path[i]
		case p != path[i]:
			return nil, false
		}
	}
	return params, true
}

// actions dispatches a body with one key, the action's name.
func actions(what string, do map[string]func(*call, any) (answer, error)) func(*call) (answer, error) {
	return func(c *call) (answer, error) {
		v, err := c.decode()
		if err != nil {
			return answer{}, err
		}
		m, ok := v.(map[string]any)
		if !ok || len(m) != 1 {
			return answer{}, Invalid("Malformed request body")
		}
		for name, arg := range m {
			f := do[name]
			if f == nil {
				return answer{}, Invalid("There is no such action: %s. Verify the request body and Content-Type header and try again.", clip(name))
			}
			r := *c.route
			r.action = what + "." + strings.TrimPrefix(name, "os-")
			c.route = &r
			return f(c, arg)
		}
		return answer{}, nil
	}
}

// argument checks the argument of an action.
func argument(name string, arg any, s *schema) (fields, error) {
	if err := s.check(name, arg); err != nil {
		return nil, err
	}
	m, ok := arg.(map[string]any)
	if !ok {
		return nil, nil
	}
	return m, nil
}

// accepted is the answer to what has begun.
func accepted() (answer, error) { return answer{status: http.StatusAccepted}, nil }

// ok is an answer with a body.
func ok(key string, body any) (answer, error) {
	return answer{status: http.StatusOK, body: object{key: body}}, nil
}
