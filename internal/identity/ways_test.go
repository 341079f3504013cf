package identity

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// says is an authenticator with one answer.
type says struct {
	caller Caller
	err    error
}

func (s says) Authenticate(*http.Request) (Caller, error) { return s.caller, s.err }

func TestChain(t *testing.T) {
	yes := says{caller: Caller{UserID: "u"}}
	none, wrong := says{err: noCredentials()}, says{err: unauthorized()}
	forbidden, wait := says{err: unscoped()}, says{err: refuse(http.StatusTooManyRequests, "later")}
	unsure := says{err: unavailable("asleep", nil)}
	for _, c := range []struct {
		name  string
		chain Chain
		want  error
	}{
		{"nobody", nil, ErrNoCredentials},
		{"the first", Chain{yes, wrong}, nil},
		{"the last", Chain{none, wrong, unsure, yes}, nil},
		{"none", Chain{none, none}, ErrNoCredentials},
		{"wrong", Chain{none, wrong, none}, ErrUnauthorized},
		{"nobody can tell", Chain{wrong, unsure, none}, ErrUnavailable},
		{"forbidden", Chain{wrong, forbidden, yes}, ErrForbidden},
		{"wait", Chain{wait, yes}, ErrTooMany},
		{"anything else", Chain{says{err: context.Canceled}, wrong}, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.chain.Authenticate(with())
			if c.want == nil && (err != nil || got.UserID != "u") || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%+v %v, want %v", got, err, c.want)
			}
			if c.name == "wrong" && errors.Is(err, ErrNoCredentials) {
				t.Fatal("wrong credentials are told as none")
			}
		})
	}
}

func TestWriteError(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{unauthorized(), 401, "requires authentication"},
		{unscoped(), 403, "not for a project"},
		{unavailable("asleep", errors.New("a secret path")), 503, "asleep"},
		{errors.New("a secret path"), 500, "unexpected error"},
	} {
		w := httptest.NewRecorder()
		WriteError(w, c.err, "http://cairn")
		body := w.Body.String()
		if w.Code != c.status || !strings.Contains(body, c.text) || strings.Contains(body, "secret") {
			t.Errorf("%v: %d %s", c.err, w.Code, body)
		}
		if (w.Header().Get("WWW-Authenticate") == `Keystone uri="http://cairn/identity/v3"`) != (c.status == 401) || (w.Header().Get("Retry-After") == "5") != (c.status == 503) {
			t.Errorf("%v: %v", c.err, w.Header())
		}
	}
}

func TestNoAuth(t *testing.T) {
	for _, addr := range []net.Addr{
		nil, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4zero}, &net.TCPAddr{}, (*net.TCPAddr)(nil),
		&net.UnixAddr{Name: "/x"}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
	} {
		if _, err := NewNoAuth(addr); err == nil || !strings.Contains(err.Error(), "127.0.0.1 or ::1 alone") {
			t.Errorf("%v: %v", addr, err)
		}
	}
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	a, err := NewNoAuth(local)
	must(t, err)
	_, err = NewNoAuth(&net.TCPAddr{IP: net.IPv6loopback})
	must(t, err)
	for _, c := range []struct {
		token, host string
		addr        net.Addr
		want        error
	}{
		{"u:p", "127.0.0.1:8776", local, nil},
		{"u:p", "localhost", local, nil},
		{"u:p", "[::1]:80", local, nil},
		{"u:0123-ab_c.d@e", "127.9.9.9", local, nil},
		{"u:p", "127.0.0.1", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, ErrForbidden},
		{"u:p", "127.0.0.1", nil, ErrForbidden},
		{"u:p", "evil.example", local, ErrForbidden},
		{"u:p", "localhost.evil.example", local, ErrForbidden},
		{"", "127.0.0.1", local, ErrNoCredentials},
		{"u", "127.0.0.1", local, ErrUnauthorized},
		{"u:", "127.0.0.1", local, ErrUnauthorized},
		{":p", "127.0.0.1", local, ErrUnauthorized},
		{"u:p/..", "127.0.0.1", local, ErrUnauthorized},
		{"u:..", "127.0.0.1", local, ErrUnauthorized},
		{"u:p:q", "127.0.0.1", local, ErrUnauthorized},
		{"u:" + strings.Repeat("p", 256), "127.0.0.1", local, ErrUnauthorized},
	} {
		req := with("X-Auth-Token", c.token)
		req.Host = c.host
		if c.addr != nil {
			req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, c.addr))
		}
		got, err := a.Authenticate(req)
		if c.want != nil && !errors.Is(err, c.want) || c.want == nil && (err != nil || got.UserID != "u" || c.token != "u:"+got.ProjectID || !got.Admin) {
			t.Errorf("%s to %s: %+v %v, want %v", c.token, c.host, got, err, c.want)
		}
	}
	if _, err := (&NoAuth{}).Authenticate(with("X-Auth-Token", "u:p")); !errors.Is(err, ErrForbidden) {
		t.Errorf("one that was not made by NewNoAuth: %v", err)
	}
}

func TestAdminToken(t *testing.T) {
	name := filepath.Join(t.TempDir(), "admin-token")
	if _, err := NewAdminToken(vfs.OS(), name, Project{}); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "short", "two words are no token", "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"} {
		must(t, os.WriteFile(name, []byte(bad), 0o600))
		if _, err := NewAdminToken(vfs.OS(), name, Project{}); err == nil || !strings.Contains(err.Error(), "one word") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	const one, two = "0123456789abcdef", "fedcba9876543210"
	must(t, os.WriteFile(name, []byte(one+"\n"), 0o600))
	a, err := NewAdminToken(vfs.OS(), name, Project{ID: "p", Name: "q"})
	must(t, err)
	check := func(token string, want error) {
		t.Helper()
		c, err := a.Authenticate(with("X-Auth-Token", token))
		if want == nil && (err != nil || !c.Admin || c.ProjectID != "p" || c.ProjectName != "q" || c.UserID == "") || want != nil && !errors.Is(err, want) {
			t.Fatalf("%+v %v, want %v", c, err, want)
		}
	}
	for range 2 {
		check(one, nil)
		check(two, ErrUnauthorized)
		check(one+"\n", ErrUnauthorized)
		check("", ErrNoCredentials)
		check(strings.Repeat("x", 1<<20), ErrUnauthorized)
	}
	must(t, os.WriteFile(name, []byte(two), 0o600))
	check(two, nil)
	check(one, ErrUnauthorized)
	must(t, os.Chmod(name, 0o644))
	check(two, ErrUnavailable)
	must(t, os.Remove(name))
	check(two, ErrUnavailable)
	must(t, os.WriteFile(name, []byte(one), 0o600))
	check(one, nil)
}
