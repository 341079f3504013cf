package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// Pauses between two attempts to connect again.
const (
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// links are the connections of a client. When one is lost all of them are ended
// and made anew together: only after the last answer of the old server has been
// noted is it known which changes no flush has covered, and a flush that a new
// server answers says nothing about those.
type links struct {
	all  []*link
	turn atomic.Uint32
}

// pick returns the connection for the next request.
func (s *links) pick() *link {
	if len(s.all) == 1 {
		return s.all[0]
	}
	return s.all[int(s.turn.Add(1))%len(s.all)]
}

// end hangs up and returns when the last answer has been noted. It reports
// whether there was any.
func (s *links) end(err error) (heard bool) {
	for _, l := range s.all {
		l.fail(err)
	}
	for _, l := range s.all {
		<-l.done
		heard = heard || l.heard.Load()
	}
	return heard
}

// Close says goodbye on all of them.
func (s *links) Close() error {
	var errs []error
	for _, l := range s.all {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// cut reports whether err is the end of a connection that another could take the
// place of. One that the server's mistakes have ended is not: they would come
// again.
func cut(err error) bool {
	if errors.Is(err, ESHUTDOWN) {
		return true
	}
	lost, ok := errors.AsType[*lostError](err)
	if !ok {
		return false
	}
	_, op := errors.AsType[*net.OpError](lost.err)
	return op || disconnected(lost.err)
}

// do sends a request and waits for its answer, over new connections if those
// that it was sent over end without one.
func (c *Client) do(ctx context.Context, k *call) error {
	s := c.current()
	err := s.pick().do(ctx, k)
	if c.o.Reconnect <= 0 || !cut(err) {
		return err
	}
	until := time.Now().Add(c.o.Reconnect)
	for cut(err) {
		var failed error
		if s, failed = c.again(ctx, s, err, until); failed != nil {
			return failed
		}
		k.fresh()
		err = s.pick().do(ctx, k)
	}
	return err
}

// again returns the connections that are in the place of old, and makes them if
// nobody has. After until it only fails.
func (c *Client) again(ctx context.Context, old *links, why error, until time.Time) (*links, error) {
	dctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	go func() {
		select {
		case <-c.closing:
			cancel()
		case <-dctx.Done():
		}
	}()
	select {
	case c.redialing <- struct{}{}:
		defer func() { <-c.redialing }()
		if s := c.current(); s != old && dctx.Err() == nil {
			return s, nil
		}
		if old.end(&lostError{what: "connection lost", err: why}) {
			c.pause = minPause
		}
		for c.moved == nil && dctx.Err() == nil {
			s, err := c.redial(dctx)
			if err == nil {
				return s, nil
			}
			if dctx.Err() == nil { // else it says only that time is up
				why = err
			}
		}
		if c.moved != nil {
			return nil, c.moved
		}
	case <-dctx.Done():
	}
	select {
	case <-c.closing:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	default:
		return nil, fmt.Errorf("nbd: the connection was lost and could not be made again within %v: %w", c.o.Reconnect, why)
	}
}

// redial makes one attempt, not too soon after the one before.
func (c *Client) redial(ctx context.Context) (*links, error) {
	wait := time.NewTimer(time.Until(c.dialed.Add(c.pause)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.pause = min(max(2*c.pause, minPause), maxPause)
	s, err := c.connect(ctx)
	c.dialed = time.Now()
	if err != nil {
		return nil, err
	}
	switch {
	case !s.all[0].session.replaces(c.session):
		c.moved = errors.New("nbd: the connection was lost, and the export is another one since then: connect again")
		err = c.moved
	case !c.replace(s):
		err = ErrClosed
	default:
		return s, nil
	}
	closeQuietly(s)
	return nil, err
}

// replace puts other connections in the place of those there are, unless the
// client was closed.
func (c *Client) replace(s *links) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.links = s
	return true
}

func (c *Client) current() *links {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.links
}
