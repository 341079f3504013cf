package main

import (
	"errors"
	"net"
	"strings"

	"github.com/cairnbackup/cairn/nbd"
)

// inherited are the sockets that systemd has made for this process: those of TCP are for
// NBD, and one unix socket is for requests.
type inherited struct {
	tcp      []net.Listener
	requests net.Listener // nil = none
}

// takeInherited returns the sockets, which are this process's from then on.
func takeInherited() (*inherited, error) {
	listeners, err := nbd.ActivationListeners()
	if err != nil {
		return nil, usagef("the sockets that systemd hands over cannot be used: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	in := &inherited{}
	for _, l := range listeners {
		switch l.Addr().Network() {
		case "tcp":
			in.tcp = append(in.tcp, l)
		case "unix":
			if in.requests != nil {
				err = usagef("systemd hands over two unix sockets, %s and %s, and only one is for requests: name one in the socket unit", in.requests.Addr(), l.Addr())
			}
			in.requests = l
		default:
			err = usagef("systemd hands over the socket %s, which is neither TCP nor a unix stream socket: name no other in the socket unit", l.Addr())
		}
	}
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return in, nil
}

// path is where the unix socket is, or else where it is to be.
func (in *inherited) path(otherwise string) string {
	if in.requests == nil {
		return otherwise
	}
	return in.requests.Addr().String()
}
