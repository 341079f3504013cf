package source

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/serve"
)

// Act is something that is done with volumes of the data plane.
type Act int

// What not every kind of volume can have done with it.
const (
	Extend Act = iota
	Reopen
	Keep    // a snapshot that stays
	Revert  // to a snapshot
	Attach  // to an address over NBD
	Fill    // with a backup
	Quiesce // made to stand still for the instant of a snapshot
	Mark    // with a checkpoint that is a third party's
)

// cannot is all that foreign volumes cannot do, and why: each sentence follows "volume X
// of kind K".
var cannot = map[string]map[Act]string{
	KindNBD: {
		Extend:  "cannot be extended by Cairn: make it larger at its server, and the next backup has the new size",
		Reopen:  "has nothing to be reopened: each backup connects to its server anew",
		Keep:    "cannot be snapshotted, as NBD has no snapshots: make one where it is served, and give that an export of its own",
		Revert:  "has no snapshot to be reverted to: restore a backup to it instead",
		Mark:    "cannot have checkpoints, as its server does not say what changed",
		Quiesce: "cannot be quiesced, as its server shows no point in time for which that would hold: stop what writes to it, or export a snapshot of it",
	},
	KindQEMU: {
		Extend: "cannot be extended by Cairn: use block_resize of its qemu, and the next backup has the new size",
		Reopen: "has nothing to be reopened: each backup connects to its qemu anew",
		Keep:   "can only be snapshotted for a backup: make a backup, which is of one instant",
		Revert: "has no snapshot to be reverted to: restore a backup to a new volume or a file, and start the guest with that",
		Attach: "has no address over NBD, as its qemu has the disk: attach a backup of it instead",
		Fill:   "cannot be restored to, as its qemu has the disk: restore to a new volume, a file or an NBD server, and start the guest with that",
		Mark:   "cannot have checkpoints of others: add a dirty bitmap with its qemu",
	},
}

// Refuse returns the refusal of an act with a volume, nil when its kind can do it. All
// that a kind cannot do is refused here and nowhere else.
func Refuse(v serve.Volume, a Act) error {
	if why, no := cannot[v.Kind][a]; no {
		return refuse(serve.CodeInvalid, "volume %s of kind %s %s", v.Name, v.Kind, why)
	}
	return nil
}

// refuse makes a refusal, of the same type as those of the data plane.
func refuse(c serve.Code, format string, args ...any) error {
	return &serve.Error{Code: c, Text: fmt.Sprintf(format, args...)}
}
