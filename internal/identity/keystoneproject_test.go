package identity

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestKeystoneProjectID(t *testing.T) {
	const id, other = "0a1b2c3d4e5f60718293a4b5c6d7e8f9", "f9e8d7c6b5a493827160f5e4d3c2b1a0"
	answers := map[string]struct {
		status int
		body   string
	}{
		"web":       {200, `{"projects":[{"id":"` + id + `","name":"web"}]}`},
		"WEB":       {200, `{"projects":[{"id":"` + id + `","name":"web"}]}`},
		"a&b c/d":   {200, `{"projects":[{"id":"` + id + `","name":"a&b c/d"}]}`},
		"all":       {200, `{"projects":[{"id":"` + other + `","name":"x"},{"id":"` + id + `","name":"all"}]}`},
		"nothing":   {200, `{"projects":[]}`},
		"others":    {200, `{"projects":[{"id":"` + other + `","name":"x"}]}`},
		"twice":     {200, `{"projects":[{"id":"` + id + `","name":"twice"},{"id":"` + other + `","name":"twice"}]}`},
		"forbidden": {403, `{"error":{"code":403}}`},
		"proxy":     {403, `<html>`},
		"revoked":   {401, `{"error":{"code":401}}`},
		"broken":    {500, `{"error":{"code":500}}`},
		"no list":   {200, `{"project":{}}`},
		"no JSON":   {200, `<html>`},
	}
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.Method != http.MethodGet || r.URL.Path != "/v3/projects" || r.Header.Get("X-Auth-Token") != "mine" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		a := answers[r.URL.Query().Get("name")]
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(server.Close)
	k, err := NewKeystone(server.URL+"/v3", KeystoneOptions{})
	must(t, err)
	for _, c := range []struct {
		ref, want string
		err       error
		asks      int
	}{
		{id, id, nil, 0},
		{"0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", nil, 0},
		{"web", id, nil, 1},
		{"WEB", id, nil, 1},
		{"a&b c/d", id, nil, 1},
		{"all", id, nil, 1},
		{"nothing", "", ErrNotFound, 1},
		{"others", "", ErrNotFound, 1},
		{"twice", "", ErrInvalid, 1},
		{"forbidden", "", ErrForbidden, 1},
		{"proxy", "", ErrUnavailable, 1},
		{"revoked", "", ErrUnauthorized, 1},
		{"broken", "", ErrUnavailable, 1},
		{"no list", "", ErrUnavailable, 1},
		{"no JSON", "", ErrUnavailable, 1},
	} {
		before := asked
		got, err := k.ProjectID(with("X-Auth-Token", "mine"), c.ref)
		if got != c.want || !errors.Is(err, c.err) || c.err == nil && err != nil || asked-before != c.asks {
			t.Errorf("%s: %q %v after %d requests, want %q %v", c.ref, got, err, asked-before, c.want, c.err)
		}
	}
	if _, err := k.ProjectID(with(), "web"); !errors.Is(err, ErrNoCredentials) {
		t.Error(err)
	}
	server.Close()
	if _, err := k.ProjectID(with("X-Auth-Token", "mine"), "web"); !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), server.URL) {
		t.Error(err)
	}
}
