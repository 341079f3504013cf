// Package serve is Cairn's data plane: it opens volumes, exports them and
// their snapshots over NBD on unix sockets, decides who may connect, and
// obeys a small control API on another unix socket (CONTROL.md). Its Client
// speaks that API.
//
// Guests' disks hang on this process. It knows nothing of repositories,
// backups or jobs, and a refused or failing request never disturbs a
// connection that is already served.
package serve

import (
	"context"
	"errors"
	"log/slog"
)

// Options configure Run. State, Control and NBDDir are required.
type Options struct {
	State   string       // folder of the volumes' state; one data plane at a time
	Control string       // path of the control socket (mode 0600)
	NBDDir  string       // folder of the NBD sockets (mode 0660)
	Group   string       // group of the NBD sockets, name or number; "" = the process's
	Logger  *slog.Logger // nil = silent
	Version string       // shown by Status
}

// Run opens all volumes, exports them, and calls ready (which may be nil)
// once everything listens. It returns when ctx has ended and all is closed
// cleanly, or an error when it could not start or not stop cleanly. A volume
// that cannot be opened is listed with its error; the others are served.
func Run(ctx context.Context, o Options, ready func()) error {
	_, _, _ = ctx, o, ready
	return errors.New("not built yet")
}
