package identity

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// publicURL checks a configured address and takes the slash off its end.
func publicURL(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !validHost(u.Host) {
		return "", refuse(http.StatusBadRequest, "public URL %.200q is no address like https://backup.example:8776", text)
	}
	return strings.TrimRight(text, "/"), nil
}

// BaseURL is where the client of a request finds this agent, without a slash at the
// end: the configured URL, or else the host that the request named, which is refused
// when it is none.
func (s *Service) BaseURL(r *http.Request) (string, error) {
	if s.public != "" {
		return s.public, nil
	}
	if !validHost(r.Host) {
		return "", refuse(http.StatusBadRequest, "The Host header of the request names no host.")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host, nil
}

// validHost reports whether s is a name or an address, with or without a port. Only
// that may get into the URLs of answers.
func validHost(s string) bool {
	if len(s) > 255+6 {
		return false
	}
	host, port, err := net.SplitHostPort(s)
	switch {
	case err != nil:
		host = s
	default:
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, _, ok = strings.Cut(inner, "]")
		a, err := netip.ParseAddr(inner)
		return ok && err == nil && a.Is6() && a.Zone() == "" && (host == inner || host == "["+inner+"]")
	}
	return host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") == "" && !strings.HasPrefix(host, ".")
}
