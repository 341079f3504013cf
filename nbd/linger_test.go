package nbd

import (
	"sync/atomic"
	"testing"
	"time"
)

// testLinger is that of a connection without deferred requests, of all of which most may.
func testLinger(all *atomic.Int32, most int32) *linger {
	var deferred lane
	deferred.init(new(budget))
	l := newLinger(&deferred)
	l.all, l.most = all, most
	return &l
}

// lingers lets a connection wait once for what comes after d, and reports whether it looked
// out. It returns the time that it is then.
func lingers(l *linger, now time.Time, d time.Duration) (bool, time.Time) {
	yes := l.begin(now)
	now = now.Add(d)
	if yes {
		l.end(now)
	}
	return yes, now
}

func TestLinger(t *testing.T) {
	const soon, late, gone = lingerTime / 2, 2 * lingerTime, 20 * lingerTime
	var all atomic.Int32
	l, now := testLinger(&all, 1), time.Now()
	wait := func(d time.Duration) (yes bool) {
		yes, now = lingers(l, now, d)
		return yes
	}
	for range 10 {
		if !wait(soon) {
			t.Fatal("did not linger, though that had paid off each time")
		}
	}
	for skips := 1; skips <= 4*lingerSkip; skips *= 2 {
		if !wait(late) {
			t.Fatal("never lingers again")
		}
		for i := range min(skips, lingerSkip) {
			if wait(soon) {
				t.Fatalf("was in vain until now, and lingers after %d waits instead of %d", i, min(skips, lingerSkip))
			}
		}
	}
	for range 2 {
		if !wait(soon) {
			t.Error("paid off, and does not linger on")
		}
	}
	if !wait(gone) {
		t.Error("paid off, and does not linger")
	}
	end := now.Add(lingerPause)
	for now.Before(end) {
		if wait(lingerPause / 10) {
			t.Fatal("lingers where the processor is needed elsewhere")
		}
	}
	if !wait(soon) {
		t.Error("does not linger when the pause is over")
	}
	if n := all.Load(); n != 0 {
		t.Errorf("%d are said to linger, of none", n)
	}
}

// No more than that linger at once.
func TestLingerTogether(t *testing.T) {
	now := time.Now()
	var all atomic.Int32
	first, second, third := testLinger(&all, 2), testLinger(&all, 2), testLinger(&all, 2)
	if !first.begin(now) || !second.begin(now) {
		t.Fatal("two may linger, and do not")
	}
	if third.begin(now) {
		t.Error("three linger where two may")
	}
	first.end(now)
	if !third.begin(now) {
		t.Error("does not linger where another has ended")
	}
	second.end(now)
	third.end(now)
	if n := all.Load(); n != 0 {
		t.Errorf("%d are said to linger, of none", n)
	}
	if testLinger(&all, 0).begin(now) {
		t.Error("takes the only processor")
	}
}

// Requests of the connection that are deferred get the processor first.
func TestLingerDeferred(t *testing.T) {
	l := testLinger(new(atomic.Int32), 1)
	g := l.lane.enter(0)
	if l.begin(time.Now()) {
		t.Error("lingers while a request is deferred")
	}
	l.lane.leave(g)
	if !l.begin(time.Now()) {
		t.Error("does not linger when it is done")
	}
}

// What comes while a connection lingers is seen without sleeping, an idle one sleeps, and
// what comes then is seen too.
func TestLingerWait(t *testing.T) {
	l := testLinger(new(atomic.Int32), 1)
	looks := 0
	for !l.wait(func() bool { looks++; return looks >= 3 }) { // others had the processor
		l = testLinger(new(atomic.Int32), 1)
	}
	l = testLinger(new(atomic.Int32), 1) // whether the last look was in time does not matter here
	start := time.Now()
	if l.wait(func() bool { return false }) {
		t.Error("saw what never came")
	}
	if d := time.Since(start); d < lingerTime {
		t.Errorf("gave up after %v", d)
	}
	if l.wait(func() bool { t.Error("looks out again at once, after it was in vain"); return true }) {
		t.Error("saw it")
	}
	r, _, peer := quickPair(t)
	for i := range byte(3) {
		time.Sleep(time.Millisecond) // longer than anybody lingers
		go func() { _, _ = peer.Write([]byte{i}) }()
		b := make([]byte, 1)
		if n, err := r.Read(b); n != 1 || b[0] != i || err != nil {
			t.Fatalf("read %v, %v", b[:n], err)
		}
	}
}
