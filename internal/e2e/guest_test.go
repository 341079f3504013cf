package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/nbd"
)

// sector is what a guest's device writes as a whole.
const sector = 512

// guest writes to a volume over NBD and knows what the volume must hold. Each
// of its lanes owns a part of the volume and has one request in flight.
type guest struct {
	uri   string
	lanes []*lane
	// kills counts the data plane's ends and starts: odd while it is down.
	kills *atomic.Int64
	hold  sync.RWMutex // held shared around each request, exclusively by pause
}

// killed says whether the data plane was down at some time since epoch.
func (g *guest) killed(epoch int64) bool { return epoch%2 == 1 || g.kills.Load() != epoch }

// lane is one writer of a guest.
type lane struct {
	g         *guest
	rng       *rand.Rand
	off       int64
	shadow    []byte // what the lane's part of the volume holds
	writes    int
	flushes   int
	lostConns int
}

func newGuest(uri string, size int64, lanes int, rng *rand.Rand, kills *atomic.Int64) *guest {
	g := &guest{uri: uri, kills: kills}
	part := size / int64(lanes)
	for i := range lanes {
		g.lanes = append(g.lanes, &lane{
			g: g, off: int64(i) * part, shadow: make([]byte, part),
			rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())),
		})
	}
	return g
}

// pause stops the guest between two requests and returns what its volume
// holds. Requests whose connection broke are settled first.
func (g *guest) pause() []byte {
	g.hold.Lock()
	var all []byte
	for _, l := range g.lanes {
		all = append(all, l.shadow...)
	}
	return all
}

func (g *guest) resume() { g.hold.Unlock() }

// run writes until ctx ends. It returns an error when the volume did not keep
// what it acknowledged, or broke a connection when nothing was killed.
func (g *guest) run(ctx context.Context) error {
	errs := make([]error, len(g.lanes))
	var wg sync.WaitGroup
	for i, l := range g.lanes {
		wg.Go(func() { errs[i] = l.run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *lane) run(ctx context.Context) error {
	var c *nbd.Client
	defer func() {
		if c != nil {
			_ = c.Close() // the test is over
		}
	}()
	for ctx.Err() == nil {
		err := l.step(ctx, &c)
		if err != nil {
			return err
		}
	}
	return nil
}

// step makes one request, on a new connection if there is none.
func (l *lane) step(ctx context.Context, c **nbd.Client) error {
	l.g.hold.RLock()
	defer l.g.hold.RUnlock()
	if *c == nil {
		var err error
		if *c, err = l.connect(ctx); err != nil || *c == nil {
			return err
		}
	}
	epoch := l.g.kills.Load()
	off, n, data, err := l.request(ctx, *c)
	switch {
	case err == nil:
		copy(l.shadow[off:off+n], data)
		return nil
	case ctx.Err() != nil:
		return nil
	case !l.g.killed(epoch):
		return fmt.Errorf("lane at %d: request failed though the data plane was not killed: %w", l.off, err)
	}
	l.lostConns++
	return l.settle(ctx, c, off, data)
}

// connect returns nil when there is no server at present.
func (l *lane) connect(ctx context.Context) (*nbd.Client, error) {
	epoch := l.g.kills.Load()
	c, err := nbd.Dial(ctx, l.g.uri, nbd.ClientOptions{})
	if err == nil {
		return c, nil
	}
	if ctx.Err() == nil && !l.g.killed(epoch) {
		return nil, fmt.Errorf("connect though the data plane was not killed: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
	return nil, nil
}

// settle takes over what a request that was cut off by a kill has left: each
// sector is the old or the new. It reconnects as often as it must.
func (l *lane) settle(ctx context.Context, c **nbd.Client, off int64, data []byte) error {
	got := make([]byte, len(data))
	for {
		if *c != nil {
			_ = (*c).Close() // broken by the kill
		}
		var err error
		if *c, err = l.connect(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		if *c == nil {
			continue
		}
		if len(got) == 0 {
			return nil
		}
		epoch := l.g.kills.Load()
		err = (*c).ReadAt(ctx, got, l.off+off)
		switch {
		case err == nil:
			return l.adopt(off, data, got)
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the test is over
		case !l.g.killed(epoch):
			return fmt.Errorf("lane at %d: read failed though the data plane was not killed: %w", l.off, err)
		}
	}
}

// request writes, zeroes, trims or flushes a random range; data is what the
// range holds afterwards.
func (l *lane) request(ctx context.Context, c *nbd.Client) (off, n int64, data []byte, err error) {
	sizes := []int64{sector, 4096, 4096, 4096, 65536, 65536, 200 * 1024}
	n = sizes[l.rng.IntN(len(sizes))]
	off = l.rng.Int64N((int64(len(l.shadow))-n)/sector+1) * sector
	data = make([]byte, n)
	switch k := l.rng.IntN(100); {
	case k < 5:
		l.flushes++
		return 0, 0, nil, c.Flush(ctx)
	case k < 12:
		err = c.Zero(ctx, l.off+off, n, k%2 == 0)
	default:
		fill(data, l.rng)
		l.writes++
		err = c.WriteAt(ctx, data, l.off+off, k%16 == 0)
	}
	return off, n, data, err
}

// adopt takes over what a cut-off request left, if that can be.
func (l *lane) adopt(off int64, data, got []byte) error {
	for i := 0; i < len(got); i += sector {
		now, old, late := got[i:i+sector], l.shadow[off+int64(i):][:sector], data[i:i+sector]
		if !bytes.Equal(now, old) && !bytes.Equal(now, late) {
			return fmt.Errorf("after a crash the sector at %d is neither the old nor the new", l.off+off+int64(i))
		}
	}
	copy(l.shadow[off:], got)
	return nil
}

// fill makes data that compress about as a disk's do, different each time.
func fill(p []byte, rng *rand.Rand) {
	for i := 0; i < len(p); i += sector {
		s := p[i:min(i+sector, len(p))]
		b := byte(rng.Uint32())
		for j := range s {
			s[j] = b
		}
		for j := 0; j+8 <= len(s)/4; j += 8 {
			x := rng.Uint64()
			for k := range 8 {
				s[j+k] = byte(x >> (8 * k))
			}
		}
	}
}
