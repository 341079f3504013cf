package nbd

import (
	"runtime"
	"testing"
	"time"
)

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
	l, now := newLinger(), time.Now()
	wait := func(d time.Duration) (yes bool) {
		yes, now = lingers(&l, now, d)
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
	if n := lingering.Load(); n != 0 {
		t.Errorf("%d are said to linger, of none", n)
	}
}

// Half of the processors are left to others.
func TestLingerTogether(t *testing.T) {
	now := time.Now()
	most := max(1, runtime.GOMAXPROCS(0)/2)
	var all []*linger
	for range most {
		l := newLinger()
		if !l.begin(now) {
			t.Fatalf("only %d of %d linger at once", len(all), most)
		}
		all = append(all, &l)
	}
	l := newLinger()
	if l.begin(now) {
		t.Errorf("%d linger on %d processors", most+1, runtime.GOMAXPROCS(0))
	}
	for _, o := range all {
		o.end(now)
	}
	if !l.begin(now) {
		t.Error("does not linger where the others have ended")
	}
	l.end(now)
}

// What comes while a connection lingers is seen without sleeping, an idle one sleeps, and
// what comes then is seen too.
func TestLingerWait(t *testing.T) {
	l := newLinger()
	looks := 0
	for !l.wait(func() bool { looks++; return true }) { // others may have the processor
		l = newLinger()
	}
	if looks == 0 {
		t.Error("did not look")
	}
	start := time.Now()
	if l = newLinger(); l.wait(func() bool { return false }) {
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
