package repository

import (
	"encoding/json"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// Info describes a repository.
type Info struct {
	ID           string // hex
	Data, Parity int    // shards of a pack
	Losses       int    // further store losses that a fresh commit survives
	Stores       int    // members
	BlockSize    int    // bytes
	Format       int    // version of what is written
}

// StoreState says whether a store can be used.
type StoreState string

// States of a store.
const (
	StoreUp      StoreState = "up"
	StoreDown    StoreState = "down"
	StoreForeign StoreState = "foreign" // answers, but is no member of this repository
)

// StoreStatus is what is known of one member, or of a store that was given and
// is none.
type StoreStatus struct {
	URL   string // empty for a member that was not given
	ID    string // hex; empty when it cannot be read
	State StoreState
	Error string // one sentence, when State is not up
	Owed  int    // shards that this store should keep and does not
}

// State is what readers make of a backup.
type State string

// States of a backup.
const (
	Available   State = "available"
	Unconfirmed State = "unconfirmed" // no proof that it was committed, or that it was not: restorable on request
	Deleted     State = "deleted"     // in the trash until a prune takes it
)

// Stats are the figures of the run that made a backup. All are bytes.
type Stats struct {
	Read    int64 `json:"read"`
	Audited int64 `json:"audited"`
	Changed int64 `json:"changed"`
	New     int64 `json:"new"`
	Stored  int64 `json:"stored"` // sealed, before parity
	Shards  int64 `json:"shards"` // with parity, as acknowledged by stores
	Hole    int64 `json:"hole"`
}

// Backup is what a root record says, and what readers make of it.
type Backup struct {
	ID          string // UUID
	Name        string
	Description string
	Project     string
	VolumeID    string
	Volume      string
	Size        int64
	BlockSize   int
	Created     time.Time
	Parent      string // backup ID; empty for a full one
	Incremental bool
	Session     string
	Stats       Stats
	State       State
	RetainUntil time.Time // not deleted before; zero: it can be
	// Attributes is a JSON object that its writer wanted kept with the backup; nil:
	// none.
	Attributes json.RawMessage
}

// Root is what a session commits. The session adds what it knows itself:
// project and volume, the parent unless Parent says another, and Stats.Shards.
type Root struct {
	BackupID    string // required, unique: a UUID
	Name        string
	Description string
	Created     time.Time
	Geometry    blockmap.Geometry
	Top         []byte // top node of the manifest
	Stats       Stats
	// Parent is the backup ID that is named as the parent, empty for a full
	// backup; nil = the backup that the session started from. A copy names what
	// its original does, whatever it started from.
	Parent *string
	// Attributes is a JSON object of at most 64 KiB that is kept with the backup,
	// sealed as all else, and never looked into. Empty: none. Programs from before
	// there were attributes cannot read a backup that has some.
	Attributes json.RawMessage

	pin  *pinRecord // nil: a backup
	keep retention  // of a record that is renewed; the session's own otherwise
}

// Outcome is what the writer of a session was told.
type Outcome int

// Outcomes of a commit.
const (
	// OutcomeUnknown: the stores did not say enough. The backup may turn out
	// committed or aborted; Verdict tells when it is decided.
	OutcomeUnknown Outcome = iota
	// OutcomeCommitted: the backup is stored and survives the promised losses.
	OutcomeCommitted
	// OutcomeFailed: the backup does not exist and never will.
	OutcomeFailed
)

// String returns "unknown", "committed" or "failed".
func (o Outcome) String() string {
	switch o {
	case OutcomeCommitted:
		return "committed"
	case OutcomeFailed:
		return "failed"
	default:
		return "unknown"
	}
}

// Decision is what the votes of a session add up to.
type Decision int

// Decisions on a session.
const (
	Undecided Decision = iota
	Committed
	Aborted
)

// String returns "undecided", "committed" or "aborted".
func (d Decision) String() string {
	switch d {
	case Committed:
		return "committed"
	case Aborted:
		return "aborted"
	default:
		return "undecided"
	}
}
