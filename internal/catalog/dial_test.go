package catalog

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestDialer: a failure that took long is that of all who come soon after, one at an
// address is not another's, and neither a quick one nor a caller who went away is anybody else's.
func TestDialer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("no route")
		tried, takes, answer := 0, 3*time.Second, away
		d := newDialer(0)
		d.connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
			tried++
			select {
			case <-time.After(takes):
				return nil, answer
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		dial := func(ctx context.Context, addr string) error {
			_, err := d.dial(ctx, "tcp", addr)
			return err
		}
		begun := time.Now()
		for range 20 {
			if err := dial(t.Context(), "a:1"); !errors.Is(err, away) {
				t.Error(err)
			}
		}
		if took := time.Since(begun); tried != 1 || took != takes {
			t.Errorf("%d tries in %v", tried, took)
		}
		if err := dial(t.Context(), "b:1"); tried != 2 || !errors.Is(err, away) {
			t.Errorf("%d tries: %v", tried, err)
		}
		time.Sleep(dialAgain)
		if answer = nil; dial(t.Context(), "a:1") != nil || dial(t.Context(), "b:1") != nil {
			t.Error("it is not tried again")
		}
		answer, takes, tried = away, time.Millisecond, 0
		for range 3 {
			if err := dial(t.Context(), "a:1"); !errors.Is(err, away) {
				t.Error(err)
			}
		}
		if tried != 3 {
			t.Errorf("a quick failure: %d tries", tried)
		}
		takes = 3 * time.Second
		gone, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := dial(gone, "a:1"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if answer = nil; dial(t.Context(), "a:1") != nil {
			t.Error("a caller who went away is the server's fault")
		}
	})
}
