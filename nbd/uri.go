package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// defaultPort is the one registered for NBD.
const defaultPort = "10809"

// endpoint is where a URI points: a dialable address and an export on it.
type endpoint struct{ network, address, export string }

// URI returns the NBD URI of the export called name on a unix socket.
func URI(socket, name string) string {
	u := url.URL{
		Scheme:   "nbd+unix",
		Path:     "/" + name,
		RawQuery: "socket=" + strings.ReplaceAll(url.QueryEscape(socket), "%2F", "/"),
	}
	return u.String()
}

// parseURI understands nbd://HOST[:PORT]/NAME and nbd+unix:///NAME?socket=PATH.
// An export called NAME is the path without its first slash, as the
// specification of NBD URIs has it.
func parseURI(s string) (endpoint, error) {
	u, err := url.Parse(s)
	if err != nil {
		return endpoint{}, fmt.Errorf("nbd: %q is not a URI: %w", s, err)
	}
	e := endpoint{export: strings.TrimPrefix(u.Path, "/")}
	if len(e.export) > maxName {
		return endpoint{}, fmt.Errorf("nbd: the export name in the URI is %d bytes long, the limit is %d", len(e.export), maxName)
	}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" {
			return endpoint{}, fmt.Errorf("nbd: URI %q names no host: use nbd://HOST[:PORT]/NAME", s)
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		e.network, e.address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		e.network, e.address = "unix", u.Query().Get("socket")
		if e.address == "" {
			return endpoint{}, fmt.Errorf("nbd: URI %q names no socket: use nbd+unix:///NAME?socket=PATH", s)
		}
	case "nbds", "nbds+unix":
		// TLS goes here: the same endpoints, and STARTTLS before anything else.
		return endpoint{}, fmt.Errorf("nbd: URI %q asks for TLS, which this client does not speak: use nbd:// or nbd+unix://", s)
	default:
		return endpoint{}, fmt.Errorf("nbd: URI %q has the scheme %q: use nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH", s, u.Scheme)
	}
	return e, nil
}
