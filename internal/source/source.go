// Package source holds foreign volumes: disks that something else than Cairn's data plane
// serves – any NBD server, a running qemu – and that are backed up as its volumes are.
// What is known of each is a record in a file (FORMAT.md).
//
// A [Set] answers the calls of [serve.Client], with volumes and snapshots of the same
// shape and refusals of the same type, so that who makes backups need not know which of
// the two it asks. What a kind cannot do, [Refuse] says.
package source

import (
	"context"
	"errors"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
)

// Values of [serve.Volume.Kind] of foreign volumes.
const (
	KindNBD  = "nbd"
	KindQEMU = "qemu"
)

// Foreign reports whether a volume is not the data plane's.
func Foreign(v serve.Volume) bool { return v.Kind == KindNBD || v.Kind == KindQEMU }

// Still calls instant while nobody writes, with all written that was to
// be. It fails with what instant did, or when it did not call it.
type Still func(ctx context.Context, instant func(context.Context) error) error

// ErrAway is wrapped when what serves a volume does not answer, or not as it should.
var ErrAway = errors.New("a foreign volume does not answer")

// driver is what a kind of volume does. The calls for one volume are made one after the
// other, but for state.
type driver interface {
	// look finds the disk and returns its size. It changes nothing.
	look(ctx context.Context, r Record) (size int64, err error)
	// state is how the disk is now, as far as that can be told soon.
	state(ctx context.Context, r Record) state
	// begin makes the disk's content of this instant readable, with what changed since
	// each of the checkpoints of r that can say it. What a failure has left sweep removes.
	begin(ctx context.Context, r Record, b beginning) (taken, error)
	// room says why a snapshot has to end, as what it takes up here is needed otherwise.
	room(r Record) error
	// verify says whether all that was read since begin was good, and is not when that
	// cannot be told.
	verify(ctx context.Context, r Record, snapshot string) error
	// end undoes begin, and keeps the checkpoint. What is not there any more is no error.
	end(ctx context.Context, r Record, snapshot string) error
	// forget drops a checkpoint. What is not there any more is no error.
	forget(ctx context.Context, r Record, checkpoint string) error
	// sweep removes all that is left of snapshots, and of checkpoints that r does not
	// have. It is called when there is no snapshot.
	sweep(ctx context.Context, r Record) error
}

// state is how a disk is.
type state struct {
	writer string            // who uses it; "" = nobody, or nobody can tell
	err    error             // why it cannot be backed up
	doubts map[string]string // by checkpoint: why everything since it counts as changed
	dirty  map[string]int64  // by checkpoint: bytes that changed since, where that is known
}

// beginning says what begin is to make.
type beginning struct {
	snapshot   string // ID, a UUID
	checkpoint string // at the same position; "" = none
	still      Still  // around the instant; nil = nothing
}

// taken is what begin made.
type taken struct {
	uri    string // to read it
	size   int64
	at     time.Time
	caveat string            // see [serve.Snapshot]
	lost   map[string]string // checkpoints that cannot say what changed, now and ever, and why
}
