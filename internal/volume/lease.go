package volume

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The heartbeat's lease is a promise, written ahead, that nothing is written to
// the data file later than it. After a kill a file time later than the lease is
// somebody else's write. A write that is stamped past the lease would thus be
// taken for a stranger's, with all snapshots broken. So
//
//   - every write looks at the clock, last of all before it changes the data file,
//     and moves the lease first if less than leaseMargin of it is left, or more than
//     leaseLength: then the clock was set back;
//   - every leaseBeat the lease is moved ahead of the writers, so that they do not
//     wait for it, as long as there were any since the last time or one is still
//     under way: a long zeroing, or a write that the disk holds up.
//
// The record is not synced, for it has to outlive the process, not the kernel. A
// stranger's write within leaseLength after the kill goes unseen here, and is left
// to the audit. In the other direction a doubt is false only when the process as a
// whole stood still for leaseMargin between the look and the write, and was killed
// before its next beat, or when the kernel finished a write that long after the kill.
const (
	leaseLength = 4 * time.Second
	leaseBeat   = time.Second
	leaseMargin = 2500 * time.Millisecond // leaves a beat that is late half a second
)

// heartbeat keeps the record of an open volume.
type heartbeat struct {
	host    Host
	writers *gate        // that pulse is called inside of
	until   atomic.Int64 // the lease on disk, ns since 1970; 0 = to be moved before the next write

	mu     sync.Mutex
	f      vfs.File
	closed bool
	rec    beatRecord  // as it is on disk, or will be
	seen   uint64      // writers that had entered by the last beat
	timer  *time.Timer // of the next beat; runs while until is not 0
}

// pulse is called before every change of the data file, as the last thing.
func (h *heartbeat) pulse() {
	if !h.covered() {
		h.renew()
	}
}

// covered tells whether what begins now will be stamped within the lease.
func (h *heartbeat) covered() bool {
	left := h.until.Load() - h.host.Now().UnixNano()
	return left >= int64(leaseMargin) && left <= int64(leaseLength)
}

// renew moves the lease for a writer. A failure costs a false doubt at the worst,
// so the guest's write goes on.
func (h *heartbeat) renew() {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Where one write of the record takes longer than the lease lasts the next
	// may not; but a disk that is so slow must not stop the guest for good.
	for tries := 2; tries > 0 && !h.closed && !h.covered(); tries-- {
		if h.move() != nil {
			return
		}
	}
}

// move writes a lease from now on. mu is held.
func (h *heartbeat) move() error {
	h.rec.Lease = h.host.Now().Add(leaseLength)
	if _, err := h.f.WriteAt(h.rec.encode(), 0); err != nil {
		h.until.Store(0)
		return fmt.Errorf("write the heartbeat record: %w", err)
	}
	h.follow()
	return nil
}

// follow takes up the lease that was written, and has the next beat come. mu is held.
func (h *heartbeat) follow() {
	h.until.Store(h.rec.Lease.UnixNano())
	if h.timer == nil {
		h.timer = time.AfterFunc(leaseBeat, h.beat)
	} else {
		h.timer.Reset(leaseBeat)
	}
}

// beat moves the lease, or lets it run out if there is nobody for whom.
func (h *heartbeat) beat() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if !h.working() {
		// A writer counts itself in before it looks at the lease. So either it is
		// counted here, or it finds the lease gone.
		h.until.Store(0)
		if !h.working() {
			return
		}
	}
	_ = h.move() // The next writer tries again.
}

// working tells whether writers have come since the last beat, or are at work
// still. mu is held.
func (h *heartbeat) working() bool {
	entered, inside := h.writers.traffic()
	came := entered != h.seen
	h.seen = entered
	return came || inside
}

// close gives the file back; the record stays as it is.
func (h *heartbeat) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	h.closed = true
	if err := h.f.Close(); err != nil {
		return fmt.Errorf("close the heartbeat record: %w", err)
	}
	return nil
}

// save changes the record and makes it durable.
func (h *heartbeat) save(change func(*beatRecord)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.rec)
	if _, err := h.f.WriteAt(h.rec.encode(), 0); err != nil {
		return fmt.Errorf("write the heartbeat record: %w", err)
	}
	if err := h.f.Sync(); err != nil {
		return fmt.Errorf("sync the heartbeat record: %w", err)
	}
	return nil
}

// openBeat takes the heartbeat over for those who write inside of a gate: from
// here on the data file may be changed.
func openBeat(fsys vfs.FS, host Host, writers *gate, name string, rec *beatRecord) (_ *heartbeat, err error) {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the heartbeat record: %w", err)
	}
	h := &heartbeat{host: host, writers: writers, f: f, rec: *rec}
	if err := h.save(func(b *beatRecord) { b.Lease = host.Now().Add(leaseLength) }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}
