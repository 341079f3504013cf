package nbd

import (
	"time"
)

// ClientOptions says how to connect.
type ClientOptions struct {
	// Contexts are the metadata contexts that Map will be asked for. Those that
	// the server does not offer are left out: see Client.Contexts.
	Contexts []string
	// Conns is how many connections to open; 0 is one. More than one is used
	// only with a server that promises that a flush covers them all.
	Conns int
	// DialTimeout bounds connecting and negotiating; 0 is 30 seconds.
	DialTimeout time.Duration
}
