package agent

import (
	"sync"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// pool is what the engines of an agent's repositories share: how many jobs run at
// once, and on which volumes. A volume has one job at a time, except that backups of it
// to several repositories may run at once: each reads a snapshot of its own. A restore
// has the volume to itself, whichever repository it is from.
//
// No repository keeps the others waiting, also when its stores hang and its jobs hold
// their slots for minutes. A job takes a slot when its repository has none; a further
// one only while a slot stays free for each other repository that has none. So as
// long as there are as many slots as repositories, there is always one free for a
// repository that has no job. If there are fewer, each repository has one at most,
// and those that hang keep the others waiting only when they are as many as the slots.
// What is free goes to the repository whose last job began longest ago.
type pool struct {
	limit int

	mu      sync.Mutex // of the engines, too
	engines []*engine  // all of them before one runs
	begun   int        // jobs
}

// newPool returns a pool for so many jobs at once; 0 = two.
func newPool(limit int) *pool {
	if limit <= 0 {
		limit = 2
	}
	return &pool{limit: limit}
}

// nextLocked returns the job that may begin next, of any engine, and nil if none may.
func (p *pool) nextLocked() *task {
	free, without := p.limit, 0
	for _, e := range p.engines {
		n := e.slotsLocked()
		free -= n
		if n == 0 && !e.stopped {
			without++
		}
	}
	var next *task
	for _, e := range p.engines {
		keep := 0 // for others
		if e.slotsLocked() > 0 {
			keep = without
		}
		if free <= keep || next != nil && next.e.last <= e.last {
			continue
		}
		if t := e.readyLocked(); t != nil {
			next = t
		}
	}
	return next
}

// mayWorkLocked says whether the volume of a job is free for it.
func (p *pool) mayWorkLocked(t *task) bool {
	for _, e := range p.engines {
		for _, o := range e.tasks {
			if o.job.State == catalog.Running && o.excludes(t) {
				return false
			}
		}
	}
	return true
}

// excludes says whether two jobs must not run at once, as they work on one volume.
func (t *task) excludes(o *task) bool {
	if t.job.VolumeID == "" || t.job.VolumeID != o.job.VolumeID {
		return false
	}
	return t.e == o.e || t.job.Kind != catalog.BackupJob || o.job.Kind != catalog.BackupJob
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
