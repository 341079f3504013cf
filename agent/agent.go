// Package agent is Cairn's control plane: it runs backups and restores as
// jobs, keeps their records in a catalog, serves backups over NBD, and is
// driven over HTTP on a unix socket (API.md), for which [Client] is the Go
// side.
//
// The agent drives the data plane ("cairn serve") through its control API and
// reads volumes as an NBD client. It may be stopped, killed and upgraded at
// any time without a guest noticing: what it was doing is settled at its next
// start by what the repository says, not by what the agent remembers.
package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tcpdoor"
)

// Options says what an agent works with.
type Options struct {
	State   string // folder of the catalog and the overlays; made when it is not there
	Socket  string // of the HTTP interface, made with mode 0600
	NBDDir  string // folder of the sockets of exported backups; made when it is not there
	Control string // the data plane's control socket, for error texts

	// Repository is the default one: open; it stays the caller's. Nothing begins before
	// what the last agent left in it is settled. When it is nil, Open is called until
	// it succeeds, and is in nobody's way.
	Repository *repository.Repository
	Open       Opener
	Others     []Repo // besides the default

	// TCP is a door for all exports of backups over TCP, which Run closes; nil =
	// there is none.
	TCP *tcpdoor.Settings
	// Inherited is the socket of the HTTP interface, made by whoever started the
	// process, which stays when Run has ended; nil = Run makes it.
	Inherited net.Listener

	API     *API   // nil = the Block Storage API is not served
	Host    string // what other hosts call this one; empty = the machine's name
	Catalog string // of the default repository, see [catalog.Open]; empty = a file in State
	Webhook string // URL that notifications go to; empty = none

	Serve   *serve.Client
	Logger  *slog.Logger // nil = none
	Limits  Limits
	Scrub   Scrub
	Version string

	// KeepPriority leaves the process at the priority it has. Otherwise Run
	// puts it behind everything else for processor and disk, for good.
	KeepPriority bool
}

// Opener opens a repository. What it opens is the agent's to close.
type Opener func(ctx context.Context) (*repository.Repository, error)

// Repo is one more repository. It has a catalog, checkpoints, exports and a scrub
// of its own; one whose stores cannot be reached, or whose catalog cannot be opened, is
// in nobody's way. Of several with the same stores one is open: the default one, or else
// the one that had them, or else the first.
type Repo struct {
	Name   string // see [CheckRepository]
	Open   Opener // called until it succeeds
	Retain time.Duration
}

// Limits bounds what the agent takes from the machine. Zero values are the
// defaults.
type Limits struct {
	ConcurrentJobs     int           // jobs that run at once, of which each repository can have one as long as they suffice; 2
	ReadBytesPerSecond int64         // from each volume that is backed up; unlimited
	Retain             time.Duration // for so long a backup cannot be deleted, unless its request says otherwise; 0 = it can be
	RestoreWorkers     int           // pieces of one restore in flight; 8
}

// Check refuses what [Run] would refuse at once: a state folder that another
// agent uses, a socket that cannot be made (empty = none is to be). It is for those
// who prepare things before they call Run, and leaves nothing.
func Check(ctx context.Context, state, socket string) error {
	if socket != "" {
		if err := free(ctx, socket); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(state, lockName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockState(state)
	if err != nil {
		return err
	}
	return lock.Close()
}

// CheckCatalog refuses what cannot be where a catalog is, see [Options].
func CheckCatalog(where string) error {
	if err := catalog.Check(where); err != nil {
		return refuse(CodeInvalid, "%v", err)
	}
	return nil
}

// HasPassword says whether there may be a password in where a catalog is.
func HasPassword(where string) bool { return catalog.HasPassword(where) }

// Run runs an agent until ctx ends, and calls ready once it answers on the
// socket. Jobs that run when ctx ends are canceled: they are settled before
// Run returns, or by the next Run if the stores do not answer. Only one agent
// can have a state folder.
func Run(ctx context.Context, o Options, ready func()) error {
	return run(ctx, o, ready)
}
