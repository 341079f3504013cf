package agent

import (
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// next takes the job from the queue that begins now: nil if none may. A job that
// was canceled while queued always may, to clean up behind itself.
func (e *engine) next() *task {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tasks {
		if t.job.State == catalog.Queued && t.cause != nil {
			return t.beginLocked()
		}
	}
	t := e.pool.nextLocked()
	switch {
	case t == nil:
		return nil
	case t.e != e:
		t.e.poke() // it is its turn
		return nil
	}
	e.pool.begun++
	t.slot, e.last = true, e.pool.begun
	return t.beginLocked()
}

func (t *task) beginLocked() *task {
	t.job.State, t.job.Started = catalog.Running, time.Now().UTC()
	return t
}

// readyLocked returns the first job of the queue whose volume is free for it, and not
// wanted by a job before it.
func (e *engine) readyLocked() *task {
	wanted := map[string]bool{}
	for _, t := range e.tasks {
		v := t.job.VolumeID
		switch {
		case t.job.State != catalog.Queued:
		case t.cause == nil && !wanted[v] && e.pool.mayWorkLocked(t):
			return t
		case v != "":
			wanted[v] = true
		}
	}
	return nil
}

// slotsLocked returns how many of the pool's jobs at once are this engine's.
func (e *engine) slotsLocked() int {
	n := 0
	for _, t := range e.tasks {
		if t.slot {
			n++
		}
	}
	return n
}
