package repository

import "errors"

// Errors of this package. They are wrapped with a sentence that names the thing
// and the way out.
var (
	// ErrPassword: the password opens none of the repository's keys.
	ErrPassword = errors.New("wrong password")
	// ErrForeign: a store belongs to another repository, or to none.
	ErrForeign = errors.New("store does not belong to this repository")
	// ErrVersion: the repository needs a newer version of this program.
	ErrVersion = errors.New("repository needs a newer version of cairn")
	// ErrTooFewStores: fewer stores can be reached than the operation needs.
	ErrTooFewStores = errors.New("too few stores")
	// ErrNotEmpty: a store that is to be initialized holds something already.
	ErrNotEmpty = errors.New("store is not empty")
	// ErrNotFound: no live backup has this name or ID.
	ErrNotFound = errors.New("no such backup")
	// ErrAmbiguous: several live backups have this name.
	ErrAmbiguous = errors.New("name is ambiguous")
	// ErrDamaged: stored data that too many stores lost or return wrongly.
	ErrDamaged = errors.New("stored data is damaged")
	// ErrEnded: the session was committed or aborted already, or has failed.
	ErrEnded = errors.New("session has ended")
	// ErrLargePrune: a prune would remove more than may go without being asked
	// for.
	ErrLargePrune = errors.New("unusually much would be removed")
	// ErrChange: another change of the stores is not finished.
	ErrChange = errors.New("the stores of the repository are being changed")
	// ErrPruning: a prune that has not ended is at work on what the operation needs.
	ErrPruning = errors.New("a prune has not ended")
	// ErrRetained: the backup may not be deleted yet.
	ErrRetained = errors.New("backup is retained")
	// ErrInvalid: an argument that makes no sense.
	ErrInvalid = errors.New("invalid argument")
)
