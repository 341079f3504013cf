package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/nbd"
)

// TestIOThread: a disk whose requests are an I/O thread's is read in full and then by what
// changed, while the guest writes and other readers hang up with requests on their way.
// A qemu that would end then is refused.
func TestIOThread(t *testing.T) {
	inThread := func(t *testing.T, format string) *guest {
		t.Helper()
		// Unlike virtio-blk, this controller uses its thread without a driver in the guest.
		return newGuest(t, guestOptions{
			format: format, device: "scsi-hd,id=d0,drive=disk",
			args: []string{"-object", "iothread,id=io", "-device", "virtio-scsi-pci,iothread=io"},
		})
	}
	if g := inThread(t, "raw"); g.version().before(9, 0) {
		before := g.traces()
		if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one", Checkpoint: "c1"}); !errors.Is(err, ErrState) {
			t.Errorf("a snapshot with qemu %v: %v", g.version(), err)
		}
		if after := g.traces(); after != before {
			t.Errorf("before:\n%safter:\n%s", before, after)
		}
		return
	}
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) { inThread(t, format).readInRounds(t, 6) })
	}
}

// readInRounds makes a snapshot after the other, each with what changed since the last,
// and ends some while they are read.
func (g *guest) readInRounds(t *testing.T, rounds int) {
	t.Helper()
	g.write(1, 0, g.size)
	before := g.traces()
	var since []string
	for round := range rounds {
		name := fmt.Sprintf("c%d", round)
		s := g.snapshot(SnapshotOptions{ID: name, Checkpoint: name, Since: since})
		want := bytes.Clone(g.model)
		var readers errgroup.Group
		for range 3 {
			readers.Go(func() error { return g.readAndLeave(t, s) })
		}
		changed := int64(round + 1)
		for b := range changed {
			g.write(byte(2+round), 3*b*block+512, 512)
		}
		g.zero(40*block, block)
		if err := readers.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, g.printed())
		}
		got, dirty := read(t, s)
		if !bytes.Equal(got, want) {
			t.Fatalf("snapshot %d is not what the disk was", round)
		}
		// What the round before this one wrote.
		if d := dirtyBlocks(dirty[fmt.Sprintf("c%d", round-1)]); round > 0 && (len(d) != round+1 || !d[0] || !d[40]) {
			t.Errorf("changed in round %d: %v", round-1, d)
		}
		if err := g.disk.Verify(t.Context(), s.ID); err != nil {
			t.Fatalf("%v\n%s", err, g.printed())
		}
		readers.Go(func() error { return g.readAndLeave(t, s) }) // or is hung up on
		g.drop(s.ID)
		_ = readers.Wait()
		since = []string{name}
	}
	none := func(string) bool { return false }
	if err := g.disk.Sweep(t.Context(), none, none); err != nil {
		t.Error(err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// readAndLeave asks for much more than a connection holds, and hangs up when the first
// answer has come.
func (g *guest) readAndLeave(t *testing.T, s Snapshot) error {
	t.Helper()
	c, err := nbd.Dial(t.Context(), s.URI, nbd.ClientOptions{})
	if err != nil {
		return err
	}
	answers := make(chan error)
	const requests = 16
	for range requests {
		go func() { answers <- c.ReadAt(t.Context(), make([]byte, min(s.Size, 4<<20)), 0) }()
	}
	first := <-answers
	err = errors.Join(first, c.Close())
	for range requests - 1 {
		<-answers // most were cut off
	}
	return err
}
