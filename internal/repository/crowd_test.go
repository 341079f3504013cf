package repository

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// crowd is several agents that write, delete, undelete and prune at once, and
// are killed at random. It notes what each was told.
type crowd struct {
	*cluster
	t *testing.T

	mu      sync.Mutex
	held    map[string]*content // told committed, and not deleted since
	deleted map[string]*content // told deleted
	next    int
}

// agent works for a while: it opens the repository anew after each kill.
func (c *crowd) agent(ctx context.Context, rng *rand.Rand, who int) {
	cache := c.t.TempDir()
	for ctx.Err() == nil {
		life, kill := context.WithCancel(ctx)
		o := Options{
			Stores: c.stores(), Password: password, CacheDir: cache, Cache: CacheSizes{Index: 1 << 20},
			Timing: Timing{Call: 5 * time.Second, Grace: time.Millisecond, Read: 5 * time.Second, Aside: time.Nanosecond},
		}
		r, err := Open(life, o)
		if err != nil {
			kill()
			if ctx.Err() == nil && !errors.Is(err, ErrTooFewStores) {
				c.t.Errorf("agent %d: %v", who, err)
				return
			}
			continue
		}
		after := time.AfterFunc(time.Duration(rng.IntN(400))*time.Millisecond, kill)
		for life.Err() == nil {
			c.act(life, r, rng, who)
		}
		after.Stop()
		kill()
		if err := r.index.close(); err != nil {
			c.t.Errorf("agent %d: %v", who, err)
		}
	}
}

func (c *crowd) act(ctx context.Context, r *Repository, rng *rand.Rand, who int) {
	switch rng.IntN(10) {
	case 0, 1:
		_, err := r.Prune(ctx, PruneOptions{Silence: 20 * time.Millisecond, MaxShare: 1})
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrTooFewStores) && !errors.Is(err, ErrEnded) {
			c.t.Logf("agent %d: %v", who, err) // stopping is never wrong
		}
	case 2, 3:
		id, v := c.some(rng, c.held)
		if id == "" {
			return
		}
		// From the moment it is asked for nothing is promised any more.
		c.mu.Lock()
		delete(c.held, id)
		c.mu.Unlock()
		if r.Delete(ctx, id) == nil {
			c.mu.Lock()
			c.deleted[id] = v
			c.mu.Unlock()
		}
	case 4:
		id, v := c.some(rng, c.deleted)
		if id == "" {
			return
		}
		c.mu.Lock()
		delete(c.deleted, id)
		c.mu.Unlock()
		if _, err := r.Undelete(ctx, id); err == nil {
			c.mu.Lock()
			c.held[id] = v
			c.mu.Unlock()
		}
	case 5:
		if id, v := c.some(rng, c.held); id != "" {
			if err := v.verify(ctx, r, id); err != nil && ctx.Err() == nil && c.holds(id) {
				c.t.Errorf("agent %d: backup %s: %v", who, id, err)
			}
		}
	default:
		c.backup(ctx, r, rng)
	}
}

func (c *crowd) backup(ctx context.Context, r *Repository, rng *rand.Rand) {
	parent, v := c.some(rng, c.held)
	var changed []int64
	if parent == "" || rng.IntN(3) == 0 {
		parent, v = "", randomContent(rng, 40, 8)
	} else {
		v = v.clone()
		changed = v.change(rng, 3)
	}
	c.mu.Lock()
	c.next++
	id := "b" + strconv.Itoa(c.next)
	c.mu.Unlock()
	if o, _ := v.backupAs(ctx, r, id, parent, changed); o == OutcomeCommitted {
		c.mu.Lock()
		c.held[id] = v
		c.mu.Unlock()
	}
}

func (c *crowd) some(rng *rand.Rand, of map[string]*content) (string, *content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	skip := rng.IntN(len(of) + 1)
	for id, v := range of {
		if skip--; skip < 0 {
			return id, v
		}
	}
	return "", nil
}

func (c *crowd) holds(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.held[id]
	return ok
}

// backupAs is backup for a volume whose size may differ from the parent's.
func (c *content) backupAs(ctx context.Context, r *Repository, id, parent string, changed []int64) (Outcome, error) {
	s, err := r.Begin(ctx, SessionOptions{Project: "p", VolumeID: "v", Volume: "disk", ParentBackup: parent})
	if err != nil {
		return OutcomeFailed, err
	}
	if s.Parent() == nil {
		changed = nil // all
	}
	top, err := c.write(ctx, s, changed)
	if err != nil {
		if ctx.Err() != nil {
			s.release() // killed: nobody tidies up
			return OutcomeFailed, err
		}
		return OutcomeFailed, errors.Join(err, s.Abort(ctx))
	}
	return s.Commit(ctx, Root{BackupID: id, Name: id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top})
}

// Three agents at once, killed now and then, on stores that lose answers: what
// they were told committed is there, and in the end no garbage is.
func TestCrowd(t *testing.T) {
	seed := rand.Uint64()
	if n, err := strconv.ParseUint(os.Getenv("CAIRN_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("CAIRN_SEED=%d", seed)
	length := 6 * time.Second
	if testing.Short() {
		length = 2 * time.Second
	}
	if n, err := strconv.Atoi(os.Getenv("CAIRN_ROUNDS")); err == nil {
		length = time.Duration(n) * time.Second
	}
	c := &crowd{cluster: newCluster(6), t: t, held: make(map[string]*content), deleted: make(map[string]*content)}
	c.init(t, 4, 2)
	var mu sync.Mutex
	rng := seeded(seed)
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Decide: func(memstore.Call) memstore.Fault {
			mu.Lock()
			defer mu.Unlock()
			switch rng.IntN(400) {
			case 0:
				return memstore.FailBefore
			case 1:
				return memstore.FailAfter
			case 2:
				return memstore.LostAck
			case 3:
				return memstore.Late
			default:
				return memstore.None
			}
		}})
	}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for who := range 3 {
		wg.Go(func() { c.agent(ctx, seeded(seed+uint64(who)+1), who) })
	}
	wg.Wait()
	c.heal()
	r := c.open(t)
	check := func(when string) {
		for id, v := range c.held {
			if err := v.verify(t.Context(), r, id); err != nil {
				t.Errorf("%s: backup %s: %v", when, id, err)
			}
		}
	}
	check("at once")
	all, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		img, err := r.Image(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := img.ReadAt(t.Context(), make([]byte, img.Size()), 0); err != nil && b.State == Available {
			t.Errorf("backup %s is listed as available: %v", b.ID, err)
		}
		_ = img.Close()
	}
	c.drained(t, r)
	check("three prunes later")
	t.Logf("%d backups made, %d left, %d in the trash", c.next, len(c.held), len(c.deleted))
	if len(c.held) == 0 && c.next < 10 {
		t.Error("next to nothing was tested")
	}
}
