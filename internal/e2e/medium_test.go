package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/nbd"
)

// supply feeds disks with power, and fails in the middle of what they do.
type supply struct {
	mu     sync.Mutex
	life   int           // how often it came back
	left   int           // changes and flushes until it fails; 0: it does not
	failed chan struct{} // closed when it has
	back   chan struct{} // closed when it comes back
}

func newSupply() *supply {
	return &supply{failed: make(chan struct{}), back: make(chan struct{})}
}

// failAfter makes it fail at the n-th change or flush from now on.
func (p *supply) failAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
}

// out says whether it has failed.
func (p *supply) out() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isOut()
}

func (p *supply) isOut() bool {
	select {
	case <-p.failed:
		return true
	default:
		return false
	}
}

// failure is closed when it has failed.
func (p *supply) failure() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// cut makes it fail now.
func (p *supply) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.isOut() {
		close(p.failed)
	}
}

// restore brings it back after a failure, with what the disks have kept.
func (p *supply) restore(rng *rand.Rand, disks ...*medium) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range disks {
		d.lose(rng)
	}
	close(p.back)
	p.life++
	p.left, p.failed, p.back = 0, make(chan struct{}), make(chan struct{})
}

// medium is a disk with a write cache that a power failure empties: of what was written
// and not flushed, each sector keeps what was durable or anything written since, whatever
// the order. It is served over NBD.
type medium struct {
	power   *supply
	size    int64
	durable map[int64][]byte   // by sector; zeros are left out
	cached  map[int64][][]byte // by sector: what was written since the last flush
	socket  string
	flushes int
}

// newMedium makes an empty disk and serves it until the test ends.
func newMedium(t *testing.T, power *supply, size int64) *medium {
	t.Helper()
	dir, err := os.MkdirTemp("", "medium-") //nolint:usetesting // a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	m := &medium{power: power, size: size, durable: map[int64][]byte{}, cached: map[int64][][]byte{}, socket: filepath.Join(dir, "s")}
	export := &nbd.Export{Name: "disk", Size: func() int64 { return size }, Open: m.open}
	server := nbd.NewServer(nbd.ServerOptions{Lookup: func(string, nbd.Peer) (*nbd.Export, bool) { return export, true }})
	l, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		power.restore(rand.New(rand.NewPCG(0, 0))) // whoever waits for it
		stop()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// fill makes the disk's durable content that of a file.
func (m *medium) fill(t *testing.T, file string) {
	t.Helper()
	all, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for s := range int64(len(all) / sector) {
		m.keep(s, all[s*sector:][:sector])
	}
}

var noSector = make([]byte, sector)

func (m *medium) keep(s int64, p []byte) {
	if slices.Equal(p, noSector) {
		delete(m.durable, s)
		return
	}
	m.durable[s] = p
}

// lose is what the power failure does.
func (m *medium) lose(rng *rand.Rand) {
	all := rng.IntN(8) // nothing is lost; all is; or some
	whole := map[int64]int{}
	for s, versions := range m.cached {
		i := rng.IntN(len(versions)+1) - 1
		if b := s / journalBlock; m.ofJournal(b) {
			if first, ok := whole[b]; ok {
				i = min(first, len(versions)-1)
			}
			whole[b] = i
		}
		switch all {
		case 0:
			i = len(versions) - 1
		case 1:
			i = -1
		}
		if i >= 0 {
			m.keep(s, versions[i])
		}
	}
	clear(m.cached)
}

// journalBlock is how many sectors a block of ext4's journal has. ext4 takes a commit
// record that is torn for damage and mounts no more, which is nothing to test here: such
// a block is lost as a whole. All others may be torn at each sector.
const journalBlock = 4096 / sector

// ofJournal tells whether a block is one, or is to become one, that begins with JBD2's magic number.
func (m *medium) ofJournal(b int64) bool {
	magic := []byte{0xC0, 0x3B, 0x39, 0x98}
	first := b * journalBlock
	return bytes.HasPrefix(m.durable[first], magic) ||
		slices.ContainsFunc(m.cached[first], func(p []byte) bool { return bytes.HasPrefix(p, magic) })
}

func (m *medium) open(context.Context, nbd.Peer) (nbd.Device, error) {
	m.power.mu.Lock()
	defer m.power.mu.Unlock()
	return plugged{m, m.power.life}, nil
}

// plugged is a connection to a medium, for as long as the power lasts.
type plugged struct {
	*medium
	life int
}

var errNoPower = errors.New("the power has failed")

// do does something with the disk. Without power it is not answered until the power is
// back, when nobody waits for it any more; then, and if the power fails at this very
// change, f may have been done or not.
func (d plugged) do(change bool, f func()) error {
	p := d.power
	p.mu.Lock()
	if d.life != p.life {
		p.mu.Unlock()
		return errNoPower
	}
	failed := p.isOut()
	if !failed {
		f()
		if change && p.left > 0 {
			p.left--
			failed = p.left == 0
			if failed {
				close(p.failed)
			}
		}
	}
	back := p.back
	p.mu.Unlock()
	if failed {
		<-back
		return errNoPower
	}
	return nil
}

func (d plugged) Size() int64 { return d.size }

func (d plugged) ReadAt(p []byte, off int64) (int, error) {
	return len(p), d.do(false, func() {
		for i := int64(0); i < int64(len(p)); i += sector {
			s := (off + i) / sector
			now := d.durable[s]
			if v := d.cached[s]; len(v) > 0 {
				now = v[len(v)-1]
			}
			if now == nil {
				now = noSector
			}
			copy(p[i:], now)
		}
	})
}

func (d plugged) WriteAt(p []byte, off int64) (int, error) {
	p = slices.Clone(p)
	return len(p), d.do(true, func() {
		for i := int64(0); i < int64(len(p)); i += sector {
			s := (off + i) / sector
			d.cached[s] = append(d.cached[s], p[i:i+sector])
		}
	})
}

func (d plugged) Flush() error {
	// The power may fail before anything of it is done.
	return errors.Join(d.do(true, func() {}), d.do(false, func() {
		d.flushes++
		for s, versions := range d.cached {
			d.keep(s, versions[len(versions)-1])
		}
		clear(d.cached)
	}))
}

func (d plugged) Trim(off, n int64) error { return d.Zero(off, n, true) }

func (d plugged) Zero(off, n int64, _ bool) error {
	return d.do(true, func() {
		for s := off / sector; s < (off+n)/sector; s++ {
			// A disk of gigabytes is zeroed at once when a file system is made; what is zero stays out.
			if d.durable[s] != nil || d.cached[s] != nil {
				d.cached[s] = append(d.cached[s], noSector)
			}
		}
	})
}

func (d plugged) Map(_ string, off, n int64) ([]blockmap.Extent, error) {
	return []blockmap.Extent{{Offset: off, Length: n, State: blockmap.Data}}, nil
}

func (d plugged) Close() error { return nil }
