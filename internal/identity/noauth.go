package identity

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// NoAuth is an [Authenticator] that believes what it is told: the token USER:PROJECT,
// as "cinder --os-auth-type noauth" sends it, is that user in that project, as an
// administrator. It works on loopback alone, for a request that came to a loopback
// address and was sent to one by name, so that no web page can use it.
type NoAuth struct{ _ struct{} }

var _ Authenticator = (*NoAuth)(nil)

// NewNoAuth returns it for the listener at an address, which has to be a loopback one.
func NewNoAuth(listener net.Addr) (*NoAuth, error) {
	if !loopbackAddr(listener) {
		return nil, refuse(http.StatusBadRequest, "noauth lets everybody in who reaches %s: it is for a listener on 127.0.0.1 or ::1 alone", listener)
	}
	return &NoAuth{}, nil
}

func loopbackAddr(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp != nil && tcp.IP.IsLoopback()
}

func loopbackHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}

// Authenticate implements [Authenticator].
func (*NoAuth) Authenticate(r *http.Request) (Caller, error) {
	text, err := tokenOf(r)
	if err != nil {
		return Caller{}, err
	}
	user, project, ok := strings.Cut(text, ":")
	if !ok || !plainName(user) || !plainName(project) {
		return Caller{}, unauthorized()
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !loopbackAddr(local) || !loopbackHost(r.Host) {
		return Caller{}, refuse(http.StatusForbidden, "Requests without authentication are taken on loopback addresses only.")
	}
	return Caller{UserID: user, UserName: user, ProjectID: project, ProjectName: project, Admin: true, Roles: []string{roleAdmin}}, nil
}

// plainName reports whether s is fit to be an ID, in paths and records too.
func plainName(s string) bool {
	return s != "" && len(s) <= maxUserName &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@") == "" && strings.Trim(s, ".") != ""
}
