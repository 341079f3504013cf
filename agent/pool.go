package agent

import (
	"sync"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// pool is what the engines of an agent's repositories share: how many jobs run at
// once, and on which volumes. A volume has one job at a time, whichever repository
// it is for: a backup must not read what a restore is writing.
type pool struct {
	limit int

	mu      sync.Mutex // of the engines, too
	engines []*engine  // all of them before one runs
	running int
}

// newPool returns a pool for so many jobs at once; 0 = two.
func newPool(limit int) *pool {
	if limit <= 0 {
		limit = 2
	}
	return &pool{limit: limit}
}

// busyLocked returns the volumes that running jobs work on.
func (p *pool) busyLocked() map[string]bool {
	busy := map[string]bool{}
	for _, e := range p.engines {
		for _, t := range e.tasks {
			if t.job.State == catalog.Running && t.job.VolumeID != "" {
				busy[t.job.VolumeID] = true
			}
		}
	}
	return busy
}

// poke wakes all engines: what one waited for may be free.
func (p *pool) poke() {
	for _, e := range p.engines {
		e.poke()
	}
}

// using returns a job of any engine that has not ended and that match accepts.
func (p *pool) using(match func(Job) bool) (Job, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.engines {
		if j, ok := e.usingLocked(match); ok {
			return j, true
		}
	}
	return Job{}, false
}
