package volume

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// leased is a volume whose clock stands still but for pass, and which notes when
// its data file was changed last.
type leased struct {
	host *fakeHost
	v    *Volume

	mu      sync.Mutex // for the real clock may beat
	written time.Time
	slow    func(op, name string) // called before each operation of the file system
}

func newLeased(t *testing.T) *leased {
	t.Helper()
	m := vfs.NewMem()
	l := &leased{host: newHost(), slow: func(string, string) {}}
	l.host.now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	l.v = newManaged(t, memOptions(m, l.host), 8*bs)
	m.OnOp(func(op, name string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.slow(op, name)
		if strings.HasSuffix(name, managedFile) && op != "sync" {
			l.written = l.host.Now()
		}
	})
	return l
}

func (l *leased) pass(d time.Duration) {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.host.now = l.host.now.Add(d)
}

// lease is what a kill at this moment would leave.
func (l *leased) lease(t *testing.T) time.Time {
	t.Helper()
	b, err := readBeat(l.v.fs, filepath.Join(l.v.dir, beatFile))
	must(t, err)
	return b.Lease
}

// TestLeaseCoversEveryWrite: whatever takes long before a write, the write is not
// later than the lease, and a stranger's after leaseLength is.
func TestLeaseCoversEveryWrite(t *testing.T) {
	p := make([]byte, 512)
	once := func(l *leased, op, part string, d time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.slow = func(o, name string) {
			if o == op && strings.Contains(name, part) {
				l.slow = func(string, string) {}
				l.pass(d)
			}
		}
	}
	for name, before := range map[string]func(l *leased){
		"nothing":                             func(*leased) {},
		"the process stands still":            func(l *leased) { l.pass(time.Minute) },
		"the process stands still for a beat": func(l *leased) { l.pass(leaseLength - leaseMargin + 1) },
		"the clock is set back":               func(l *leased) { l.pass(-time.Hour) },
		"a preimage takes long":               func(l *leased) { once(l, "sync", ".log", time.Minute) },
		"the tracker takes long":              func(l *leased) { once(l, "write", trackerDir, time.Minute) },
		"the lease itself takes long":         func(l *leased) { l.pass(time.Minute); once(l, "write", beatFile, time.Minute) },
	} {
		for what, write := range map[string]func(v *Volume) error{
			"write": func(v *Volume) error { return second(v.WriteAt(p, bs)) },
			"zero":  func(v *Volume) error { return v.Zero(bs, bs, true) },
			"trim":  func(v *Volume) error { return v.Trim(7*bs, bs) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				l := newLeased(t)
				must(t, second(l.v.WriteAt(p, 7*bs)))
				snap(t, l.v, SnapshotOptions{})
				must(t, second(l.v.WriteAt(p, 7*bs)))
				before(l)
				must(t, write(l.v))
				lease := l.lease(t)
				if left := lease.Sub(l.written); left < leaseMargin {
					t.Errorf("the lease ended %v after the write", left)
				}
				if left := lease.Sub(l.host.Now()); left > leaseLength {
					t.Errorf("for %v after a kill nobody would notice a stranger", left)
				}
				must(t, l.v.Close())
			})
		}
	}
}

// TestBeat moves the lease along with a write that takes long, and lets it run out after that.
func TestBeat(t *testing.T) {
	l := newLeased(t)
	must(t, l.v.BeginWrite(0, 512))
	for range 3 {
		l.pass(leaseBeat)
		l.v.beat.beat()
		if left := l.lease(t).Sub(l.host.Now()); left != leaseLength {
			t.Errorf("%v of the lease are left while a write is under way", left)
		}
	}
	must(t, l.v.EndWrite(0, 512, nil))
	must(t, second(l.v.WriteAt(make([]byte, 512), 0)))
	l.v.beat.beat() // for those
	last := l.lease(t)
	l.pass(leaseBeat)
	l.v.beat.beat()
	if l.lease(t) != last {
		t.Error("the lease is moved for nobody")
	}
	// One that begins within what is left would not be accompanied.
	must(t, l.v.BeginWrite(0, 512))
	if left := l.lease(t).Sub(l.host.Now()); left != leaseLength {
		t.Errorf("%v of the lease are left to a write that nobody accompanies", left)
	}
	must(t, l.v.EndWrite(0, 512, nil))
	must(t, l.v.Close())
}

// TestBeatComes waits for a beat of the real clock.
func TestBeatComes(t *testing.T) {
	l := newLeased(t)
	l.host.mu.Lock()
	l.host.now = time.Time{}
	l.host.mu.Unlock()
	must(t, l.v.BeginWrite(0, 512))
	first := l.lease(t)
	for end := time.Now().Add(time.Minute); l.lease(t).Equal(first); {
		if time.Now().After(end) {
			t.Fatal("no beat in a minute")
		}
		time.Sleep(leaseBeat / 20)
	}
	must(t, l.v.EndWrite(0, 512, nil))
	must(t, l.v.Close())
}
