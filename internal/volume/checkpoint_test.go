package volume

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

func TestAddCheckpoint(t *testing.T) {
	m := vfs.NewMem()
	v := newManaged(t, memOptions(m, newHost()), 8*bs)
	write := func(b int64) {
		t.Helper()
		_, err := v.WriteAt([]byte{1}, b*bs)
		must(t, err)
	}
	write(0)
	must(t, v.AddCheckpoint("a"))
	write(1)
	must(t, v.AddCheckpoint("b"))
	write(2)
	for _, c := range []struct{ from, to, want string }{{"a", "", "1 2"}, {"b", "", "2"}, {"a", "b", "1"}} {
		bits, doubt, err := v.Dirty(c.from, c.to)
		must(t, err)
		if got := runsOf(bits); got != c.want || doubt != "" {
			t.Errorf("from %s to %q: dirty %s, doubt %q, want %s", c.from, c.to, got, doubt, c.want)
		}
	}
	if err := v.AddCheckpoint("a"); !errors.Is(err, blockmap.ErrCheckpointExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := v.AddCheckpoint(checkpointPrefix + uuid.NewString()); !errors.Is(err, ErrInvalid) {
		t.Errorf("a snapshot's name: %v", err)
	}

	// What was written may not be on the disk: no checkpoint.
	failOn(m, "sync", managedFile, syscall.EIO)
	if err := v.AddCheckpoint("c"); !errors.Is(err, ErrFailed) {
		t.Errorf("the sync failed: %v", err)
	}
	m.FailOn(nil)
	var names []string
	for _, c := range v.Checkpoints() {
		names = append(names, c.Name)
		if c.Doubt == "" {
			t.Errorf("checkpoint %s is trusted behind a failed fsync", c.Name)
		}
	}
	if got := strings.Join(names, " "); got != "a b" {
		t.Errorf("checkpoints %s", got)
	}
	if err := v.AddCheckpoint("d"); !errors.Is(err, ErrFailed) {
		t.Errorf("a volume that has failed: %v", err)
	}
	_ = v.Close() // it has failed
}

func runsOf(b *blockmap.Bitmap) string {
	var l []string
	for i := range b.Len() {
		if b.Test(i) {
			l = append(l, string(rune('0'+i)))
		}
	}
	return strings.Join(l, " ")
}
