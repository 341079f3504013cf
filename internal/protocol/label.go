package protocol

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/protocol/explore"
)

type action uint8

const (
	actOpen action = iota
	actList
	actSource
	actGiveUp
	actPack
	actRoot
	actVote
	actVoteLost
	actVoteRefused
	actVoteYounger
	actRepairRead
	actRepairCopy
	actRepairEnd
	actPruneStart
	actPrunePacks
	actPruneDecided
	actPruneMark
	actPrunePublish
	actPruneSessions
	actPruneAbort
	actPruneSettled
	actPruneRelist
	actPrunePurge
	actPruneSweep
	actPruneDone
	actPruneTidy
	actTidy
	actDelete
	actUndelete
	actLose
	actResync
	actLateRoot
	actLatePack
)

// sentences say what each action does: who, and to which stores or packs.
var sentences = [...]string{
	actOpen:          "W%d: W1 open on %v",
	actList:          "W%d: W2 lists of %v read",
	actSource:        "W%d: W3 source read, packs %v reused",
	actGiveUp:        "W%d: W3 source not live, gives up%.0v",
	actPack:          "W%d: W5 pack on %v",
	actRoot:          "W%d: W6 root on %v",
	actVote:          "W%d: W7 commit vote on %v",
	actVoteLost:      "W%d: W7 aborted on %v",
	actVoteRefused:   "W%d: W7 commit vote on %v, taken for refused",
	actVoteYounger:   "W%d: W7 %v is no voter",
	actRepairRead:    "W%d: repair read the root of backup 0",
	actRepairCopy:    "W%d: repair copied backup 0's root and vote to %v",
	actRepairEnd:     "W%d: repair ended",
	actPruneStart:    "P%d: P0, P1 with %v",
	actPrunePacks:    "P%d: P2 packs %v",
	actPruneDecided:  "P%d: P3 decided sessions %v",
	actPruneMark:     "P%d: P4 condemns packs %v",
	actPrunePublish:  "P%d: P5 list on %v",
	actPruneSessions: "P%d: P6 sessions of %v",
	actPruneAbort:    "P%d: P6 abort vote, store and session %v",
	actPruneSettled:  "P%d: P6 all decided",
	actPruneRelist:   "P%d: P7 will delete packs %v",
	actPrunePurge:    "P%d: P8 purged backups %v",
	actPruneSweep:    "P%d: P9 deleted pack %v",
	actPruneDone:     "P%d: P10 done",
	actPruneTidy:     "P%d: P11 own list removed",
	actTidy:          "somebody removes the list of P%d",
	actDelete:        "user %d: deletes backup 0, tombstone on %v",
	actUndelete:      "user %d: takes the tombstone away",
	actLose:          "operator %d: store %v is lost, an empty one takes its place",
	actResync:        "operator %d: store %v is filled",
	actLateRoot:      "a late PUT of root %d lands on %v",
	actLatePack:      "a late PUT of pack %d lands on %v",
}

func label(a action, who int, what set) explore.Label {
	return explore.Label(a)<<16 | explore.Label(who&0xff)<<8 | explore.Label(what)
}

// Describe says what a step does.
func (m *model) Describe(l explore.Label) string {
	a, who, what := action(l>>16&0xff), int(l>>8&0xff), set(l&0xff)
	switch a {
	case actPruneAbort:
		return fmt.Sprintf("P%d: P6 abort vote on %v for session %v", who, (what & 0xf).members(), (what >> 4).members())
	default:
		return fmt.Sprintf("%s %v", sentences[a], what.members())
	}
}
