// Package volume runs live volumes: a raw file or block device and a state
// folder beside it. All guest I/O goes through it, so that changes are tracked
// and snapshots keep their content.
//
// # A write
//
//	validate -> gate (shared) -> mark in the tracker -> preimages -> lease -> write -> gate
//
// The gate is what a snapshot closes for an instant; nothing else makes writers
// wait for each other, except that two that overwrite the same unsaved block share
// one copy. Reads take no lock.
//
// # Snapshots
//
// A snapshot copies nothing. It opens an epoch: from then on the first write to
// each block saves the old content as a preimage, of the epoch that is newest at
// that time. The content of block b at snapshot s is the preimage of b with the
// smallest epoch not older than s, or else what the live volume holds. A block of
// the newest epoch is
//
//	state    its writers                    readers of a snapshot
//	absent   one claims it                  read the live volume and look again
//	copying  wait                           read the live volume and look again
//	saved    go ahead                       read the log
//	skipped  go ahead (nobody needs it)     find it in an older epoch
//
// A preimage that a persistent snapshot needs is on stable storage before its
// block may be overwritten; writers share the fsync. One that only temporary
// snapshots need is not synced, and its log is thrown away at the next open.
//
// The reader of a temporary snapshot may release its beginning: for its sake nothing is
// saved there any more, while older and newer snapshots have what they need. A release
// is seen by every writer before it leaves a preimage out, and a reader looks for it
// again when it has its bytes: what it has not seen released then was not overwritten
// while it read.
//
// What cannot be saved (no room, an unreadable old block, a failing disk) breaks
// the snapshots that need it, durably and before the block is overwritten. The
// guest never hears of it; readers get an error from then on, never other bytes.
//
// # Openings
//
// Who writes calls OpenForWriting before and CloseForWriting after; it is not
// asked for at every write. The first one in raises a durable count, the last one
// out syncs the data: Openings tells those who share the medium with other hosts
// whether it may have changed. Users know the count as the volume's epoch; it has
// nothing to do with the epochs of snapshots.
//
// # Trust
//
// After a failed fsync nothing is known about what was written since the last
// good one: the volume refuses writes and its tracker is distrusted until it is
// opened again. An open compares the data file with the heartbeat that the last
// owner left, and distrusts the tracker, and breaks the snapshots, when somebody
// else wrote.
//
// FORMAT.md describes the files of the state folder.
package volume
