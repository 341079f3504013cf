// Package priority puts a process behind others, for processor and disk, and starts from
// there what must not be behind.
package priority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// level is both priorities of a thread.
type level struct {
	nice   int
	ioprio int
}

// lowered is nice 10, and the lowest of the eight levels of the best-effort class for disks.
var lowered = level{nice: 10, ioprio: 2<<13 | 7}

// ioprioWho says that an ID is a thread's.
const ioprioWho = 1

// autogroup is where the kernel has the nice value of a whole session (sched(7)): where
// sessions share the processors out among them, those of threads only count within one.
const autogroup = "/proc/self/autogroup"

// change is what Lower made of the process's level.
type change struct{ was, is level }

// changed is what Lower did, nil before that.
var changed atomic.Pointer[change]

// Lower puts this process behind others, unless it is further behind already. It logs what
// it could not do. On Linux both priorities are a thread's, and threads and processes
// inherit them from the one that starts them: after two rounds no thread is left that an
// unlowered one could have started.
// A session that the process leads, as that of a service, goes behind other sessions too; so
// what InFront starts needs one of its own. One that others lead is left as it is.
func Lower(ctx context.Context, log *slog.Logger) {
	b, err := own()
	known := err == nil
	to := lowered
	if known {
		to = lowered.behind(b)
		changed.CompareAndSwap(nil, &change{was: b, is: to})
	}
	for range 2 {
		tasks, rerr := os.ReadDir("/proc/self/task")
		if rerr != nil {
			err = rerr
			break
		}
		for _, t := range tasks {
			id, aerr := strconv.Atoi(t.Name())
			if aerr != nil {
				continue
			}
			if serr := to.set(id); serr != nil && !errors.Is(serr, unix.ESRCH) {
				err = serr
			}
		}
	}
	if err = errors.Join(err, lowerSession()); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "priority not lowered: guests may notice backups", slog.Any("error", err))
	}
	if known && !raises(b) {
		log.LogAttrs(ctx, slog.LevelWarn, "a data plane that this agent starts again will be behind other programs too: run the agent as root, or \"cairn serve\" by itself")
	}
}

// lowerSession puts the session behind others, if this process leads it.
func lowerSession() error {
	if leader, err := unix.Getsid(0); err != nil || leader != os.Getpid() {
		return err //nolint:wrapcheck // with the one sentence of Lower
	}
	now, err := os.ReadFile(autogroup)
	if errors.Is(err, os.ErrNotExist) {
		return nil // this kernel knows no such thing
	}
	if err != nil {
		return err //nolint:wrapcheck // as above
	}
	var group, nice int
	if n, _ := fmt.Sscanf(string(now), "/autogroup-%d nice %d", &group, &nice); n == 2 && nice >= lowered.nice {
		return nil
	}
	f, err := os.OpenFile(autogroup, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(lowered.nice))
	return errors.Join(err, f.Close())
}

// raises tries whether InFront is allowed to give a thread the level b.
func raises(b level) (yes bool) {
	_ = InFront(func() error { // which has no error of its own
		now, err := own()
		yes = err == nil && now == b
		return nil
	})
	return yes
}

// InFront calls f with the priority that the process had before Lower, as far as that is
// allowed: it takes CAP_SYS_NICE. A process that f starts keeps it, in front of other sessions
// only in one of its own; what goroutines do that f starts is done behind others again.
func InFront(f func() error) error {
	c := changed.Load()
	if c == nil {
		return f()
	}
	runtime.LockOSThread()
	defer func() {
		if c.is.set(0) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
	}()
	_ = c.was.set(0) // Lower has said so if that is not allowed
	return f()
}

// own is the level of the calling thread.
func own() (level, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return of(0)
}

// of is the level of a thread, 0 being the calling one.
func of(thread int) (level, error) {
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
	if err != nil {
		return level{}, err
	}
	io, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWho, uintptr(thread), 0)
	if e != 0 {
		return level{}, e
	}
	return level{nice: 20 - nice, ioprio: int(io)}, nil // the kernel counts nice values from 40 down
}

// behind is whichever of two priorities is the lower one, for each kind. Classes for disks
// are counted downwards, in the upper bits, and none is before them.
func (l level) behind(o level) level {
	return level{nice: max(l.nice, o.nice), ioprio: max(l.ioprio, o.ioprio)}
}

// set gives the level to a thread, 0 being the calling one.
func (l level) set(thread int) error {
	err := unix.Setpriority(unix.PRIO_PROCESS, thread, l.nice)
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWho, uintptr(thread), uintptr(l.ioprio)); e != 0 {
		err = errors.Join(err, e)
	}
	return err
}
