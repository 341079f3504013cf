package qemu

import (
	"errors"
	"fmt"
)

// What a caller tells apart. The errors that wrap these are whole sentences.
var (
	// ErrUnreachable: nobody answers on the monitor, or qemu ended meanwhile.
	ErrUnreachable = errors.New("qemu cannot be reached")
	// ErrEnded: there is no such process any more, and so nothing of ours in it. It
	// comes together with ErrUnreachable.
	ErrEnded = errors.New("the guest does not run")
	// ErrBusy: another client holds the monitor.
	ErrBusy = errors.New("the monitor is busy")
	// ErrNoRoom: the disk with the folder for what guests overwrite is all but full.
	ErrNoRoom = errors.New("no room for what a guest overwrites")
	// ErrNoDisk: qemu has no such disk (any more).
	ErrNoDisk = errors.New("no such disk")
	// ErrState: the guest is in a state in which its disks cannot be snapshotted.
	ErrState = errors.New("not possible in this state")
	// ErrBroken: the snapshot lost what it preserved; what was read from it is
	// worth nothing.
	ErrBroken = errors.New("the snapshot broke")
	// ErrNoSnapshot: there is no snapshot of this ID.
	ErrNoSnapshot = errors.New("no such snapshot")
)

// CommandError is qemu's refusal of one command.
type CommandError struct {
	Command string // "blockdev-add"
	Class   string // "GenericError"
	Desc    string // qemu's own words
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("qemu refuses %s: %s", e.Command, e.Desc)
}

// refused reports whether err is qemu's answer, not a failure to get one: the
// connection is good for the next command then.
func refused(err error) bool {
	var c *CommandError
	return errors.As(err, &c)
}
