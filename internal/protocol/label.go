package protocol

import (
	"fmt"
	"strconv"
	"strings"

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
	actCompactWill
	actCompactOpen
	actCompactCopy
	actCompactGiveUp
	actCompactForward
	actCompactVote
	actCompactLost
	actCompactFence
	actPrunePurge
	actPruneVoid
	actPruneSweep
	actPruneDone
	actPruneTidy
	actTidy
	actDelete
	actUndelete
	actLose
	actMark
	actJoinLists
	actJoinRest
	actRetire
	actJoin
	actJoinShards
	actResync
	actLateRoot
	actLatePack
	actLateMoved
	actLateForward
)

// sentences say what each action does: # is the number of the writer or prune,
// ~ that of the session, @ the stores, packs or backups.
var sentences = [...]string{
	actOpen:           "W#: W1 open on @",
	actList:           "W#: W2 lists of @ read",
	actSource:         "W#: W3 source read, packs @ reused",
	actGiveUp:         "W#: W3 source not live, gives up",
	actPack:           "W#: W5 pack on @",
	actRoot:           "W#: W6 root on @",
	actVote:           "W#: W7 commit vote on @",
	actVoteLost:       "W#: W7 aborted on @",
	actVoteRefused:    "W#: W7 commit vote on @, taken for refused",
	actVoteYounger:    "W#: W7 @ is no voter",
	actRepairRead:     "W#: repair read the root of backup 0",
	actRepairCopy:     "W#: repair copied backup 0's root and vote to @",
	actRepairEnd:      "W#: repair ended",
	actPruneStart:     "P#: P0, P1 with @",
	actPrunePacks:     "P#: P2 packs @",
	actPruneDecided:   "P#: P3 decided sessions @",
	actPruneMark:      "P#: P4 condemns packs @",
	actPrunePublish:   "P#: P5 list on @",
	actPruneSessions:  "P#: P6 sessions of @",
	actPruneAbort:     "P#: P6 abort vote on @",
	actPruneSettled:   "P#: P6 all decided",
	actPruneRelist:    "P#: P7 will delete packs @",
	actCompactWill:    "P#: P4 condemns packs @, and will compact pack 0",
	actCompactOpen:    "P#: P7 opens a session for what it moves",
	actCompactCopy:    "P#: P7 moved chunks @ of pack 0",
	actCompactGiveUp:  "P#: P7 cannot read what it would move",
	actCompactForward: "P#: P7 forwarding on @",
	actCompactVote:    "P#: P7 commit vote for what it moved on @",
	actCompactLost:    "P#: P7 aborted on @: pack 0 stays",
	actCompactFence:   "P#: P6 abort vote for a compaction on @",
	actPrunePurge:     "P#: P8 purged backups @",
	actPruneVoid:      "P#: P8 the members change: void",
	actPruneSweep:     "P#: P9 deleted pack @",
	actPruneDone:      "P#: P10 done",
	actPruneTidy:      "P#: P11 own list removed",
	actTidy:           "somebody removes the list of P#",
	actDelete:         "the user deletes backup 0, tombstone on @",
	actUndelete:       "the user takes the tombstone away",
	actLose:           "store @ is lost, an empty one takes its place",
	actMark:           "a change of the members is marked: store @ is to join",
	actJoinLists:      "lists and traces of prunes are copied to store @",
	actJoinRest:       "all other records are copied to store @",
	actRetire:         "store @ loses its identity",
	actJoin:           "store @ is a member",
	actJoinShards:     "store @ gets its shards",
	actResync:         "store @ is filled",
	actLateRoot:       "a late PUT of root ~ lands on @",
	actLatePack:       "a late PUT of pack ~ lands on @",
	actLateMoved:      "a late PUT of the pack that P# moved to lands on @",
	actLateForward:    "a late PUT of the forwarding of P# lands on @",
}

func label(a action, who int, what set) explore.Label {
	return explore.Label(a)<<16 | explore.Label(who&0xff)<<8 | explore.Label(what)
}

// Describe says what a step does.
func (m *model) Describe(l explore.Label) string {
	a, who, what := action(l>>16&0xff), int(l>>8&0xff), set(l&0xff)
	on := fmt.Sprint(what.members())
	if a == actPruneAbort {
		on = fmt.Sprintf("%v for session %v", (what & 0xf).members(), (what >> 4).members())
	}
	return strings.NewReplacer("#", strconv.Itoa(who+1), "~", strconv.Itoa(who), "@", on).Replace(sentences[a])
}
