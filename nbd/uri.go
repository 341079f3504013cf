package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// defaultPort is the one registered for NBD.
const defaultPort = "10809"

// endpoint is where a URI points: a dialable address and an export on it.
type endpoint struct {
	network, address, export string
	tls                      bool
	trust                    trust
}

// trust is what a URI says about TLS.
type trust struct {
	certificates string // folder; empty for the system's authorities and no certificate of our own
	hostname     string // in the server's certificate
	unverified   bool
}

// The forms of URIs, for whoever got one wrong.
const (
	tcpURI  = "nbd://HOST[:PORT]/NAME"
	unixURI = "nbd+unix:///NAME?socket=PATH"
)

// URI returns the NBD URI of the export called name on a unix socket.
func URI(socket, name string) string {
	u := url.URL{
		Scheme:   "nbd+unix",
		Path:     "/" + name,
		RawQuery: "socket=" + strings.ReplaceAll(url.QueryEscape(socket), "%2F", "/"),
	}
	return u.String()
}

// parseURI understands nbd://HOST[:PORT]/NAME and nbd+unix:///NAME?socket=PATH,
// and the same with nbds for TLS. An export called NAME is the path without its
// first slash, as the specification of NBD URIs has it.
func parseURI(s string) (endpoint, error) {
	u, err := url.Parse(s)
	if err != nil {
		return endpoint{}, fmt.Errorf("nbd: %q is not a URI: %w", s, err)
	}
	e := endpoint{export: strings.TrimPrefix(u.Path, "/")}
	if len(e.export) > maxName {
		return endpoint{}, fmt.Errorf("nbd: the export name in the URI is %d bytes long, the limit is %d", len(e.export), maxName)
	}
	var known []string
	switch scheme := u.Scheme; scheme {
	case "nbd", "nbds":
		e.tls = scheme == "nbds"
		err = e.tcp(u)
	case "nbd+unix", "nbds+unix":
		e.tls = scheme == "nbds+unix"
		known = append(known, "socket")
		err = e.unix(u)
	default:
		err = fmt.Errorf("has the scheme %q: use %s or %s, or nbds for TLS", scheme, tcpURI, unixURI)
	}
	if err == nil {
		err = e.parameters(u, known)
	}
	if err != nil {
		return endpoint{}, fmt.Errorf("nbd: URI %q %w", s, err)
	}
	return e, nil
}

func (e *endpoint) tcp(u *url.URL) error {
	if u.Hostname() == "" {
		return errors.New("names no host: use " + tcpURI)
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	e.network, e.address = "tcp", net.JoinHostPort(u.Hostname(), port)
	e.trust.hostname = u.Hostname()
	return nil
}

func (e *endpoint) unix(u *url.URL) error {
	e.network, e.address = "unix", u.Query().Get("socket")
	if e.address == "" {
		return errors.New("names no socket: use " + unixURI)
	}
	return nil
}

// parameters takes in what the query says. A parameter that is not understood is
// refused: what it asked for would silently not be so.
func (e *endpoint) parameters(u *url.URL, known []string) error {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("has a malformed query: %w", err)
	}
	for key, values := range q {
		value := values[0]
		switch {
		case len(values) > 1:
			return fmt.Errorf("has the parameter %s more than once", key)
		case slices.Contains(known, key):
		case !strings.HasPrefix(key, "tls-"):
			return fmt.Errorf("has the parameter %q, which is not known: leave it out", key)
		case !e.tls:
			return fmt.Errorf("has the parameter %s without asking for TLS: use %s", key, strings.Replace(u.Scheme, "nbd", "nbds", 1))
		default:
			if err = e.trust.set(key, value); err != nil {
				return err
			}
		}
	}
	if e.tls && e.trust.hostname == "" && !e.trust.unverified {
		return errors.New("does not say which name the server's certificate has: add tls-hostname=NAME, or tls-verify-peer=0 to trust any")
	}
	return nil
}

// set takes in one parameter.
func (t *trust) set(key, value string) error {
	switch key {
	case "tls-certificates":
		t.certificates = value
	case "tls-hostname":
		t.hostname = value
	case "tls-verify-peer":
		switch value {
		case "0", "false":
			t.unverified = true
		case "1", "true":
		default:
			return fmt.Errorf("has %s=%s: it is 0 or 1", key, value)
		}
	case "tls-type":
		if value != "x509" {
			return fmt.Errorf("has %s=%s: this client knows x509 only", key, value)
		}
	default:
		return fmt.Errorf("has the parameter %q, which is not known: leave it out", key)
	}
	if value == "" {
		return fmt.Errorf("has the parameter %s without a value", key)
	}
	return nil
}
