package source

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/cairnbackup/cairn/internal/serve"
)

// SameExport reports whether two NBD URIs name the same export, as far as that can be told
// by how they are written. What is no URI is the same as nothing.
func SameExport(a, b string) bool {
	x, ok := exportOf(a)
	y, also := exportOf(b)
	return ok && also && x == y
}

// CheckURI refuses what is no NBD URI.
func CheckURI(uri string) error {
	if _, ok := exportOf(uri); !ok {
		return refuse(serve.CodeInvalid, "%q is no NBD URI: use nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH", uri)
	}
	return nil
}

// export is what an NBD URI names.
type export struct{ address, name string }

func exportOf(uri string) (export, bool) {
	u, err := url.Parse(uri)
	if err != nil {
		return export{}, false
	}
	e := export{name: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd+unix", "nbds+unix":
		socket := u.Query().Get("socket")
		if socket == "" {
			return export{}, false
		}
		e.address = filepath.Clean(socket)
	case "nbd", "nbds":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		e.address = net.JoinHostPort(strings.ToLower(u.Hostname()), port)
	default:
		return export{}, false
	}
	return e, true
}

// SocketOf is the unix socket that an NBD URI names, "" for none.
func SocketOf(uri string) string {
	if e, ok := exportOf(uri); ok && filepath.IsAbs(e.address) {
		return e.address
	}
	return ""
}
