package nbd

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How long a connection looks out for the next request before its goroutine sleeps.
//
// A client that waits for each reply sends the next request within some 20 µs, and to
// fall asleep and be woken costs more than that on both sides, above all where an idle
// processor stops. So a connection that has nothing deferred stays awake for a while, and
// yields its processor to whoever wants it between two looks: the client may be among
// them. SPEED.md has figures. The Go runtime has no other use for that processor meanwhile,
// which is why deferred requests come first, and one processor alone is never used so.
//
// It does so only as long as that pays off: after each time in vain it sleeps at once for
// twice as many times as before; and where the yielded processor does not soon come back
// it is needed elsewhere, and is left alone for a while.
const (
	lingerTime = 50 * time.Microsecond
	// lingerTaken is how long a processor must have been gone to be needed elsewhere,
	// and lingerPause for how long it is left alone then.
	lingerTaken = 3 * lingerTime
	lingerPause = 250 * time.Millisecond
	// lingerSkip is how many times in a row a connection sleeps at once, at most.
	lingerSkip = 128
)

// processors is what the process had at its start. A program may give the Go runtime
// more places than that since.
var processors = runtime.GOMAXPROCS(0)

// lingering counts those that do, of all connections of the process. Each keeps a
// processor from the others, so they are at most half of what there is.
var lingering atomic.Int32

// linger is how one connection does. Only the goroutine that reads it uses it.
type linger struct {
	lane  *lane         // what is deferred
	all   *atomic.Int32 // how many linger
	most  int32         // of them
	until time.Time     // looks out until then
	rest  time.Time     // or does not before this
	skip  int           // sleeps at once so many times
	skips int           // and that many the next time that it was in vain

	counts int32     // 1 if others let this one have its turn, or 0
	slept  bool      // since the last turn
	awake  time.Time // since then, or since the others had their turn
}

func newLinger(l *lane) linger {
	return linger{lane: l, all: &lingering, most: int32(processors / 2), skips: 1} //nolint:gosec // processors are few
}

// wait calls look until it reports true, as long as that is sensible, and reports whether
// it did.
func (l *linger) wait(look func() bool) (came bool) {
	if !l.begin(time.Now()) {
		l.slept = true
		return false
	}
	for !came && time.Now().Before(l.until) {
		yield()
		came = look()
	}
	l.end(time.Now())
	l.slept = l.slept || !came
	return came
}

// turn gives other connections theirs when this one has been awake for long.
func (l *linger) turn() {
	if everybody.waiting.Load() == l.counts {
		return
	}
	now := time.Now()
	switch {
	case l.slept:
		l.slept, l.awake = false, now
	case now.Sub(l.awake) >= turnEvery:
		everybody.give()
		l.awake = time.Now()
	}
}

// yield lets whoever waits for this processor have it now.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// begin reports whether to look out now.
func (l *linger) begin(now time.Time) bool {
	switch {
	case l.skip > 0:
		l.skip--
		return false
	case now.Before(l.rest):
		return false
	case !l.lane.idle():
		return false
	case l.all.Add(1) > l.most:
		l.all.Add(-1)
		return false
	}
	l.until = now.Add(lingerTime)
	return true
}

// end notes what came of it. What came too late came in vain: sleeping would have cost less.
func (l *linger) end(now time.Time) {
	l.all.Add(-1)
	switch late := now.Sub(l.until); {
	case late < 0:
		l.skips = 1
		return
	case late > lingerTaken-lingerTime:
		l.rest = now.Add(lingerPause)
	}
	l.skip, l.skips = l.skips, min(2*l.skips, lingerSkip)
}
