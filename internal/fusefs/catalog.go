package fusefs

import (
	"context"
	"sync"
	"time"
)

// catalog is the listing that the directories are made of. It is fetched again
// when it is older than refresh; while the source cannot list (an agent that is
// being restarted, say) the last listing stays in use.
type catalog struct {
	source  Source
	refresh time.Duration
	failed  func(error)

	mu      sync.Mutex // held across List: a hundred lookups make one request
	fetched time.Time
	valid   bool
	volumes []volumeDir

	inoMu   sync.Mutex
	inos    map[string]uint64
	nextIno uint64
}

func newCatalog(o *Options) *catalog {
	return &catalog{
		source: o.Source, refresh: o.Refresh, failed: o.Failed,
		inos: make(map[string]uint64), nextIno: 2, // 1 is the root's
	}
}

// list returns the directories. The result is shared and must not be changed.
func (c *catalog) list(ctx context.Context) ([]volumeDir, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.valid && time.Since(c.fetched) < c.refresh {
		return c.volumes, nil
	}
	entries, err := c.source.List(ctx)
	c.fetched = time.Now()
	if err != nil {
		c.failed(err)
		if c.valid {
			return c.volumes, nil
		}
		return nil, err
	}
	c.volumes, c.valid = arrange(entries), true
	return c.volumes, nil
}

// volume returns the directory with this name.
func (c *catalog) volume(ctx context.Context, name string) (volumeDir, bool, error) {
	vols, err := c.list(ctx)
	if err != nil {
		return volumeDir{}, false, err
	}
	for _, v := range vols {
		if v.name == name {
			return v, true, nil
		}
	}
	return volumeDir{}, false, nil
}

// volumeByID returns the present state of a directory that was looked up
// before; its name may have changed since, because another volume took it.
func (c *catalog) volumeByID(ctx context.Context, id string) (volumeDir, bool, error) {
	vols, err := c.list(ctx)
	if err != nil {
		return volumeDir{}, false, err
	}
	for _, v := range vols {
		if v.id == id {
			return v, true, nil
		}
	}
	return volumeDir{}, false, nil
}

// ino gives every key a number of its own for the life of the mount. A hash
// would be shorter, and once in a while show one backup as another.
func (c *catalog) ino(key string) uint64 {
	c.inoMu.Lock()
	defer c.inoMu.Unlock()
	n, ok := c.inos[key]
	if !ok {
		n = c.nextIno
		c.nextIno++
		c.inos[key] = n
	}
	return n
}
