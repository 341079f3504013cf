package volume

import (
	"errors"
	"fmt"
	"sync"
)

// maxOpenings is the most that volume.json may say: every reader of JSON knows
// such numbers exactly.
const maxOpenings = 1 << 53

// openings counts how often the volume was opened for writing, and those who may
// write now. The count outlives the process: whoever finds it as it was, and
// nobody writing then and now, knows that nothing was written through this state
// folder in between. Other folders may stand for the same data elsewhere.
//
// Of one opening the order is
//
//	in use – count raised, durable – writes – data durable – not in use
//
// so that there is no moment at which the count is the new one, nobody is in use
// and writes are yet to come.
type openings struct {
	changing sync.Mutex // one beginning or end at a time; taken before Volume.recording

	mu    sync.Mutex // held for an instant
	count uint64     // as volume.json has it; changed with Volume.recording held too
	users int        // who may write, or are about to
}

// OpenForWriting has to come before WriteAt, BeginWrite, Zero and Trim; Revert,
// Extend and the trims that were put off see to it themselves. If nobody has the
// volume open for writing, what other hosts may have written is not hidden by the
// page cache any more (ErrStale), and the count of openings is raised, which is durable when
// nil is returned. After an error nothing may be written. It waits for disks, but
// not for snapshots or other changes of the volume. The caller calls
// CloseForWriting once for each nil.
func (v *Volume) OpenForWriting() error {
	o := &v.openings
	o.changing.Lock()
	defer o.changing.Unlock()
	if o.add(1) > 1 {
		return nil
	}
	if err := v.refreshCache(); err != nil {
		o.add(-1)
		return fmt.Errorf("open volume %s for writing: %w", v.name, err)
	}
	if err := v.raiseOpenings(); err != nil {
		o.add(-1)
		return fmt.Errorf("record that volume %s is opened for writing: %w", v.name, err)
	}
	return nil
}

// CloseForWriting ends what OpenForWriting began, when the last write has
// ended. The last one to leave makes durable what was written. If that fails the
// volume stays open for writing, though it takes no more writes, until it is
// reopened: nobody knows what the kernel still writes back.
func (v *Volume) CloseForWriting() error {
	o := &v.openings
	o.changing.Lock()
	defer o.changing.Unlock()
	if _, users := o.now(); users == 1 {
		if v.data.shared {
			// Before they are done, another host may have written there.
			v.deferred.cancel(0, v.size.Load())
		}
		if err := v.syncData(); err != nil {
			return err
		}
	}
	o.add(-1)
	return nil
}

// Openings returns how often the volume was opened for writing, ever, and
// whether it is now, both of one moment. If it was not open at two calls that
// give the same count, nothing was written between them, and what had been
// written before was on stable storage. It waits for no disk.
func (v *Volume) Openings() (count uint64, open bool) {
	count, users := v.openings.now()
	return count, users > 0
}

func (o *openings) now() (count uint64, users int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count, o.users
}

func (o *openings) add(n int) (users int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.users += n
	return o.users
}

// raiseOpenings adds one to the count in volume.json.
func (v *Volume) raiseOpenings() error {
	v.recording.Lock()
	defer v.recording.Unlock()
	count, _ := v.openings.now()
	if count >= maxOpenings {
		return fmt.Errorf("%w: it was opened %d times, and that is the limit", ErrInvalid, count)
	}
	// Not by way of v.rec, which those read who hold admin alone.
	if err := v.replaceRecord(v.rec, count+1); err != nil {
		return err
	}
	v.openings.mu.Lock()
	defer v.openings.mu.Unlock()
	v.openings.count = count + 1
	return nil
}

// whileOpen runs change with the volume open for writing.
func (v *Volume) whileOpen(change func() error) error {
	if err := v.OpenForWriting(); err != nil {
		return err
	}
	return errors.Join(change(), v.CloseForWriting())
}
