package agent

import (
	"context"
	"testing"

	"github.com/cairnbackup/cairn/nbd"
)

// A sparse volume costs its data, not its size: to back up, to restore anew,
// and to restore over what is there.
func TestSparse(t *testing.T) {
	r := testRig(t)
	const size = 4 << 40
	v := r.volume("huge", size)
	p := noise(1 << 20)
	places := []int64{0, 1 << 30, 3<<40 + 4096, size - 1<<20}
	r.write(v.URI, func(c *nbd.Client) error {
		for _, off := range places {
			if err := c.WriteAt(context.Background(), p, off, false); err != nil {
				return err
			}
		}
		return nil
	})
	r.idle("huge")
	b := r.backup(CreateBackup{Volume: "huge"})
	if b.BytesRead > 5<<20 {
		t.Errorf("%d bytes were read of 4 MiB of data", b.BytesRead)
	}
	for _, req := range []Restore{{Backup: b.ID, NewVolume: "copy"}, {Backup: b.ID, Volume: "copy"}} {
		j := r.wait(r.agent.Restore(t.Context(), req))
		res, err := DecodeRestore(j)
		if err != nil || j.State != JobSucceeded || res.BytesWritten > 5<<20 || j.Progress.Done != size {
			t.Fatalf("%+v, %+v, %v", j, res, err)
		}
		r.idle("copy")
	}
	c, err := r.agent.Volume(t.Context(), "copy")
	if err != nil {
		t.Fatal(err)
	}
	r.write(c.URI, func(c *nbd.Client) error {
		got := make([]byte, len(p))
		for _, off := range places {
			if err := c.ReadAt(context.Background(), got, off); err != nil {
				return err
			}
			r.equal("a piece of the copy", got, p)
		}
		return nil
	})
}
