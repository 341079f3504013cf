package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestSweepsAgain: what could not be removed is tried again soon, and then less and less
// often; what is due is not waited with; and why it fails is said once.
func TestSweepsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var log strings.Builder
		var failing atomic.Bool
		failing.Store(true)
		at, due, ended := make(chan time.Time, 100), make(chan struct{}, 1), make(chan struct{})
		go func() {
			defer close(ended)
			keepTrying(ctx, slog.New(slog.NewTextHandler(&log, nil)), due, func(context.Context) error {
				at <- time.Now()
				if failing.Load() {
					return errors.New("the monitor is busy")
				}
				return nil
			})
		}()
		begun := time.Now()
		expect := func(what string, after time.Duration, want ...time.Duration) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			var got []time.Duration
			for len(at) > 0 {
				got = append(got, (<-at).Sub(begun))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: swept at %v, want %v", what, got, want)
			}
			begun = time.Now()
		}
		const second = time.Second
		expect("failing", 95*second, 0, second/2, 3*second/2, 7*second/2, 15*second/2, 31*second/2, 63*second/2, 123*second/2, 183*second/2)
		due <- struct{}{}
		expect("due", second, 0, second/2)
		failing.Store(false)
		expect("mended", 62*second, second/2, 61*second/2, 121*second/2)
		failing.Store(true)
		due <- struct{}{}
		expect("due again", second, 0, second/2)
		cancel()
		<-ended
		if n := strings.Count(log.String(), "not swept yet"); n != 2 {
			t.Errorf("said %d times:\n%s", n, log.String())
		}
	})
}

// TestSweptWhenTheMonitorAnswers: what a backup has left in qemu whose monitor did not
// answer at its end is removed once it does.
func TestSweptWhenTheMonitorAnswers(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g := newQEMUGuest(t, "raw", 1<<20)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk"}); err != nil {
		t.Fatal(err)
	}
	j := g.held(r)
	if err := os.Rename(g.qmp(), g.qmp()+".real"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", g.qmp())
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 1000)
	go func() {
		for c, aerr := l.Accept(); aerr == nil; c, aerr = l.Accept() {
			_ = c.Close()
			refused <- struct{}{}
		}
	}()
	if j = r.wait(r.agent.CancelJob(ctx, j.ID)); j.State != JobCanceled {
		t.Errorf("%+v", j)
	}
	<-refused // by whoever ends the snapshot, or by a sweep
	if len(g.left()) == 0 {
		t.Fatal("nothing was left")
	}
	if err = errors.Join(l.Close(), os.Rename(g.qmp()+".real", g.qmp())); err != nil {
		t.Fatal(err)
	}
	r.until("a clean qemu", func() bool { return len(g.left()) == 0 })
}
