package source

import (
	"context"
	"fmt"
	"time"

	"github.com/cairnbackup/cairn/nbd"
)

// lookTimeout bounds a look at a server.
const lookTimeout = 20 * time.Second

// unsteady is what a reader of a backup has to know of where it came from.
const unsteady = "the volume was read while it may have been written: its NBD server shows no point in time, so the backup is sound only if nobody wrote meanwhile"

// nbdServer is the kind nbd: an export of any NBD server. A snapshot of it is the export
// itself, and nothing is left at the server.
type nbdServer struct{}

var _ driver = nbdServer{}

// look connects and asks for the size.
func (nbdServer) look(ctx context.Context, r Record) (int64, error) {
	c, err := nbd.Dial(ctx, r.URI, nbd.ClientOptions{DialTimeout: lookTimeout})
	if err != nil {
		return 0, away(r, err)
	}
	size := c.Size()
	if err := c.Close(); err != nil {
		return 0, away(r, err)
	}
	return size, nil
}

// state is not asked of the server, whom a list of volumes would wait for.
func (nbdServer) state(_ context.Context, r Record) state {
	s := state{doubts: make(map[string]string, len(r.Checkpoints))}
	for _, c := range r.Checkpoints {
		s.doubts[c.Name] = "the server does not say what changed"
	}
	return s
}

func (d nbdServer) begin(ctx context.Context, r Record, _ beginning) (taken, error) {
	size, err := d.look(ctx, r)
	return taken{uri: r.URI, size: size, at: time.Now().UTC(), caveat: unsteady}, err
}

func (nbdServer) room(Record) error                            { return nil }
func (nbdServer) verify(context.Context, Record, string) error { return nil }
func (nbdServer) end(context.Context, Record, string) error    { return nil }
func (nbdServer) forget(context.Context, Record, string) error { return nil }
func (nbdServer) sweep(context.Context, Record) error          { return nil }

// away says that what a volume is does not answer as it should.
func away(r Record, err error) error {
	return fmt.Errorf("%w: volume %s (%s): %w", ErrAway, r.Name, r.where(), err)
}
