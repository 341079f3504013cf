package nbd

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a busy connection lets the others have their turn.
//
// What has come for a goroutine that waits for its socket is noticed by a thread of the Go
// runtime that has nothing to run. It then runs that goroutine, and until a thread has
// nothing to run again nobody looks, but for a monitor, every 10 ms. So a connection whose
// client is never behind, and which looks out for it instead of sleeping, would have all
// others wait so long. Where there are others it therefore waits every turnEvery for an
// event of its own making: its thread has nothing to run then, and looks. SPEED.md has
// figures.
const turnEvery = 100 * time.Microsecond

// everybody is all connections of the process, which share the threads of the runtime.
var everybody turns

// turns is how connections take turns.
type turns struct {
	// waiting is how many there are that must not wait: all but those in the background.
	waiting atomic.Int32
	once    sync.Once
	event   syscall.RawConn // nil when it cannot be had
}

// give has a thread look who else has something to do, once it has done what is known, and
// returns when it has. Of several that give at once each waits, one after the other: the
// thread that looks may be any of theirs.
func (t *turns) give() {
	t.once.Do(t.open)
	if t.event == nil {
		return
	}
	sent := false
	// The event is told by the runtime, when it comes upon it, to whoever waits for it. A
	// failure is that nobody waits.
	_ = t.event.Read(func(fd uintptr) bool {
		if sent {
			return true
		}
		_, err := unix.Write(int(fd), binary.NativeEndian.AppendUint64(nil, 1))
		sent = true
		return err != nil
	})
}

// open makes the event, which stays as long as the process.
func (t *turns) open() {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return
	}
	if raw, err := os.NewFile(uintptr(fd), "eventfd").SyscallConn(); err == nil {
		t.event = raw
	}
}
