package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/nbd"
)

// model is what a guest's disk, its checkpoints and its snapshots must be.
type model struct {
	t           *testing.T
	g           *guest
	rnd         *rand.Rand
	checkpoints map[string]map[int64]bool // blocks written since
	snapshots   map[string]*modelSnapshot
	stack       []string // IDs of snapshots from the bottom, also of some that were dropped
	count       int
}

type modelSnapshot struct {
	Snapshot
	content []byte
	dirty   map[string]map[int64]bool
	stop    context.CancelFunc
	reader  *errgroup.Group
}

// TestModel does at random what guests and agents do; each snapshot is read all the
// time while the guest writes.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	steps := 40
	if n, err := strconv.Atoi(os.Getenv("CAIRN_ROUNDS")); err == nil {
		steps = n
	}
	t.Logf("seed %d", seed)
	m := &model{
		t: t, g: newGuest(t, guestOptions{format: "qcow2"}), rnd: rand.New(rand.NewPCG(seed, 1)),
		checkpoints: map[string]map[int64]bool{}, snapshots: map[string]*modelSnapshot{},
	}
	before := m.g.traces()
	for range steps {
		switch n := m.rnd.IntN(20); {
		case n < 11:
			m.write()
		case n < 15:
			m.snapshot()
		case n < 18:
			m.drop()
		case n < 19:
			m.dropCheckpoint()
		case len(m.snapshots) == 0:
			m.restart()
		}
		m.checkInfo()
	}
	for len(m.snapshots) > 0 {
		m.drop()
	}
	for len(m.checkpoints) > 0 {
		m.dropCheckpoint()
	}
	if after := m.g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

func (m *model) write() {
	off := m.rnd.Int64N(m.g.size/512) * 512
	n := min(m.g.size-off, (1+m.rnd.Int64N(1024))*512)
	if m.rnd.IntN(4) == 0 {
		m.g.zero(off, n)
	} else {
		m.g.write(byte(1+m.rnd.IntN(255)), off, n)
	}
	for b := off / block; b*block < off+n; b++ {
		for _, c := range m.checkpoints {
			c[b] = true
		}
	}
}

func (m *model) snapshot() {
	m.count++
	o := SnapshotOptions{ID: fmt.Sprintf("s%d", m.count), Since: []string{"none"}}
	s := &modelSnapshot{content: bytes.Clone(m.g.model), dirty: map[string]map[int64]bool{}}
	for name, c := range m.checkpoints {
		o.Since = append(o.Since, name)
		s.dirty[name] = maps.Clone(c)
	}
	if len(m.stack) == maxFilters {
		if _, err := m.g.disk.Snapshot(m.t.Context(), o); !errors.Is(err, ErrBusy) {
			m.t.Fatalf("too many snapshots: %v", err)
		}
		return
	}
	m.stack = append(m.stack, o.ID)
	if m.rnd.IntN(2) == 0 {
		o.Checkpoint = fmt.Sprintf("c%d", m.count)
		m.checkpoints[o.Checkpoint] = map[int64]bool{}
	}
	s.Snapshot = m.g.snapshot(o)
	if len(s.Lost) != 1 || s.Lost["none"] == "" {
		m.t.Fatalf("lost are %v", s.Lost)
	}
	m.snapshots[o.ID] = s
	_, dirty := read(m.t, s.Snapshot)
	for name, want := range s.dirty {
		if got := dirtyBlocks(dirty[name]); !maps.Equal(got, want) {
			m.t.Fatalf("%s, changed since %s: %v, should be %v", s.ID, name, got, want)
		}
	}
	m.watch(s)
}

// watch reads a snapshot over and over, from several goroutines at once.
func (m *model) watch(s *modelSnapshot) {
	ctx, stop := context.WithCancel(m.t.Context())
	m.t.Cleanup(stop)
	s.stop = stop
	s.reader = &errgroup.Group{}
	for range 2 {
		seed := m.rnd.Uint64()
		s.reader.Go(func() error {
			c, err := nbd.Dial(ctx, s.URI, nbd.ClientOptions{})
			if err != nil {
				return err
			}
			rnd := rand.New(rand.NewPCG(seed, 2))
			for ctx.Err() == nil && err == nil {
				off := rnd.Int64N(c.Size())
				p := make([]byte, 1+rnd.Int64N(min(c.Size()-off, 1<<20)))
				if err = c.ReadAt(ctx, p, off); err == nil && !bytes.Equal(p, s.content[off:off+int64(len(p))]) {
					err = fmt.Errorf("%s is not what the disk was, in %d bytes at %d", s.ID, len(p), off)
				}
			}
			if ctx.Err() != nil {
				err = nil
			}
			return errors.Join(err, c.Close())
		})
	}
}

func (m *model) drop() {
	id, ok := pick(m.rnd, m.snapshots)
	if !ok {
		return
	}
	s := m.snapshots[id]
	delete(m.snapshots, id)
	if got, _ := read(m.t, s.Snapshot); !bytes.Equal(got, s.content) {
		m.t.Fatalf("%s is not what the disk was", id)
	}
	if err := m.g.disk.Verify(m.t.Context(), id); err != nil {
		m.t.Fatal(err)
	}
	s.stop()
	if err := s.reader.Wait(); err != nil {
		m.t.Fatal(err)
	}
	m.g.drop(id)
	for n := len(m.stack); n > 0 && m.snapshots[m.stack[n-1]] == nil; n-- {
		m.stack = m.stack[:n-1]
	}
}

func (m *model) dropCheckpoint() {
	name, ok := pick(m.rnd, m.checkpoints)
	if !ok {
		return
	}
	delete(m.checkpoints, name)
	if err := m.g.disk.DropCheckpoint(m.t.Context(), name); err != nil {
		m.t.Fatal(err)
	}
}

// restart ends qemu in order and starts it again: the disk is a qcow2.
func (m *model) restart() {
	m.g.quit()
	m.g.start()
}

func (m *model) checkInfo() {
	info, err := m.g.disk.Info(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range info.Snapshots {
		if m.snapshots[s.ID] == nil {
			m.t.Fatalf("there is a snapshot %s", s.ID)
		}
	}
	for _, c := range info.Checkpoints {
		if want := int64(len(m.checkpoints[c.Name])) * block; c.Dirty != want || c.Fault != "" || !c.Persistent {
			m.t.Fatalf("checkpoint %+v, should be %d bytes", c, want)
		}
	}
	if len(info.Snapshots) != len(m.snapshots) || len(info.Checkpoints) != len(m.checkpoints) {
		m.t.Fatalf("%+v", info)
	}
}

func pick[V any](rnd *rand.Rand, m map[string]V) (string, bool) {
	names := slices.Sorted(maps.Keys(m))
	if len(names) == 0 {
		return "", false
	}
	return names[rnd.IntN(len(names))], true
}
