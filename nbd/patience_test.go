package nbd

import (
	"context"
	"sync"
	"testing"
	"time"
)

func TestPatience(t *testing.T) {
	const n = 1 << 20
	fast, slow := slowRequest+n, slowRequest+n+1
	var p patience
	// take lets a request be done, if the loop does it, and reports whether it does.
	take := func(d time.Duration) bool {
		if p.lost() {
			return false
		}
		p.took(d, n)
		return true
	}
	for i := range 100 {
		d := fast
		if i%(slowWeight+1) == 0 { // now and then the processor was away
			d = slow
		}
		if !take(d) {
			t.Fatalf("request %d is deferred, for slow ones that are few", i)
		}
	}
	deferred := func() (n int) {
		for !take(fast) {
			n++
		}
		return n
	}
	for range slowWeight {
		take(fast)
	}
	take(verySlow + 1)
	if n := deferred(); n != slowSpell {
		t.Fatalf("after a very slow one %d are deferred", n)
	}
	for range 2 * slowWeight {
		take(fast)
	}
	take(slow)
	take(fast)
	take(slow)
	if n := deferred(); n != slowSpell {
		t.Fatalf("after two slow ones %d are deferred", n)
	}
	for range 3 {
		if !take(slow) {
			t.Fatal("a spell does not end")
		}
		if n := deferred(); n != slowSpell {
			t.Fatalf("still slow, and %d are deferred", n)
		}
	}
	for range 2 * slowWeight {
		take(fast)
	}
	if take(slow); !take(fast) {
		t.Error("a slow one among many fast ones is one too many")
	}
}

// slowDisk lets writes wait until next says so.
type slowDisk struct {
	*fileDisk
	next func()
}

func (d *slowDisk) BeginWrite(off, n int64) error {
	d.next()
	return d.fileDisk.BeginWrite(off, n)
}

// Where writes have turned out to wait, one that waits holds up nothing behind it.
func TestSlowWritesDeferred(t *testing.T) {
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	var writes int // before the last
	d := &slowDisk{fileDisk: newFileDisk(t, 1<<20, true)}
	d.next = func() {
		if writes++; writes <= 2 {
			time.Sleep(4 * slowRequest)
			return
		}
		<-released
	}
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	w := connect(t, listen(t, serverOf(t, e)))
	w.enter("disk", false)
	write := func(cookie uint64) { w.request(0, cmdWrite, cookie, 0, 512, make([]byte, 512)) }
	for i := range uint64(2) {
		write(i)
		w.expectSimple(i, 0)
	}
	write(7)
	w.request(0, cmdRead, 8, 4096, 512)
	w.expectSimple(8, 0)
	w.expect(make([]byte, 512))
	release()
	w.expectSimple(7, 0)
}
