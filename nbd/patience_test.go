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

// Where a write has turned out to wait for the device, the next one holds up nothing.
func TestSlowWritesDeferred(t *testing.T) {
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	first := true
	d := &slowDisk{fileDisk: newFileDisk(t, 1<<20, true)}
	d.next = func() {
		if first {
			first = false
			time.Sleep(2 * slowBegin)
			return
		}
		<-released
	}
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	w := connect(t, listen(t, serverOf(t, e)))
	w.enter("disk", false)
	write := func(cookie uint64) { w.request(0, cmdWrite, cookie, 0, 512, make([]byte, 512)) }
	write(1)
	w.expectSimple(1, 0)
	write(7)
	w.request(0, cmdRead, 8, 4096, 512)
	w.expectSimple(8, 0)
	w.expect(make([]byte, 512))
	release()
	w.expectSimple(7, 0)
}

// A write that takes long while deferred ones are under way may have waited for those, and
// says nothing.
func TestSlowWritesCrowded(t *testing.T) {
	tr := transmission{file: newFileDisk(t, 1<<20, true)}
	f, _ := tr.file.DataFile()
	slow := func(int64, int) error {
		time.Sleep(2 * verySlow)
		return nil
	}
	write := func() {
		t.Helper()
		if err := tr.writeRange(f, 0, 512, slow); err != nil {
			t.Fatal(err)
		}
	}
	tr.deferredWrites.Add(1)
	if write(); tr.writes.lost() {
		t.Error("defers writes for what a deferred one may have caused")
	}
	tr.deferredWrites.Add(-1)
	if write(); !tr.writes.lost() {
		t.Error("goes on in the loop, which has waited")
	}
}
