package repository

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// A repository has one master key and any number of passwords up to maxKeys, each
// with an object "keys/<ID>" that holds the master key under it. One that is
// removed leaves the mark "removed-keys/<ID>" for ever: it outranks the object on
// a store that was down meanwhile, at opening and for repairs; a prune then
// removes what is left.

// Key is one password's key.
type Key struct {
	ID      string
	Label   string
	Created time.Time // zero when it is not known
	KDF     KDF
	Stores  int  // that have it, whole
	Current bool // the one that this repository was opened with
	Old     bool // it holds a master key from before a rotation, or of one that was given up: it opens nothing
	Damaged bool // no store that answers has it whole: it opens nothing, and only its ID is known
}

// Keys returns the keys that have not been removed: those that open the repository,
// the oldest first, then those of another master key and the damaged ones.
func (r *Repository) Keys(ctx context.Context) ([]Key, error) {
	records, err := r.keyRecords(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Key, 0, len(records))
	for _, k := range records {
		out = append(out, k.Key)
	}
	return out, nil
}

// AddKey makes another password open the repository. kdf may be nil for the
// default. When it fails, the password may open it or not: add it again, and
// remove what is there twice.
func (r *Repository) AddKey(ctx context.Context, password []byte, label string, kdf *KDF) (Key, error) {
	all, err := r.Keys(ctx)
	if err != nil {
		return Key{}, err
	}
	all = slices.DeleteFunc(all, func(k Key) bool { return !k.opens() })
	if len(all) >= maxKeys {
		return Key{}, fmt.Errorf("the repository has %d passwords, which is the most: remove one first: %w", len(all), ErrInvalid)
	}
	params := defaultKDF()
	if kdf != nil {
		params = kdfParams{Time: kdf.Time, Memory: kdf.MemoryKiB, Threads: kdf.Threads}
	}
	if err = params.check(); err != nil {
		return Key{}, fmt.Errorf("add a password: %w: %w", err, ErrInvalid)
	}
	id, err := newIdent()
	if err != nil {
		return Key{}, err
	}
	master, epoch := r.newestMaster()
	k, err := r.putKey(ctx, id, master, epoch, r.membership().quorum(), password, label, params)
	if err != nil {
		return Key{}, fmt.Errorf("add a password: %w", err)
	}
	if err = r.upToDate(ctx); err != nil {
		return Key{}, err
	}
	if r.membership().epochs() != epoch {
		return Key{}, fmt.Errorf("the key of the repository was rotated meanwhile: add the password once more: %w", ErrChange)
	}
	return k, nil
}

// putKey writes the master key of a sealing epoch under a password, to so many stores
// at least.
func (r *Repository) putKey(ctx context.Context, id ident, master masterKey, epoch, need int, password []byte, label string, p kdfParams) (Key, error) {
	w, err := master.wrap(password, r.id, epoch, p)
	if err != nil {
		return Key{}, err
	}
	w.Label, w.Created = label, r.o.Now().UTC().Truncate(time.Second)
	payload, err := json.Marshal(w)
	if err != nil {
		return Key{}, fmt.Errorf("wrap the master key: %w", err)
	}
	n, err := r.putOnAllAt(ctx, epoch, need, kindKey, keyName(id), payload)
	return Key{ID: id.String(), Label: label, Created: w.Created, Stores: n, KDF: KDF{Time: p.Time, MemoryKiB: p.Memory, Threads: p.Threads}}, err
}

// putOnAll writes a control object to all members that answer, at least 1+d.
func (r *Repository) putOnAll(ctx context.Context, kd kind, name string, payload []byte) (int, error) {
	return r.putOnAllAt(ctx, 0, r.membership().quorum(), kd, name, payload)
}

// putOnAllAt is putOnAll for what is sealed under the master key of a sealing epoch,
// with the number of stores that have to take it.
func (r *Repository) putOnAllAt(ctx context.Context, epoch, need int, kd kind, name string, payload []byte) (int, error) {
	object, err := r.keys.sealEnvelopeAt(epoch, kd, name, payload)
	if err != nil {
		return 0, err
	}
	ms := r.current()
	answers := ask(ctx, r.o.Timing, ms, len(ms), r.puts(name, object))
	n := len(succeeded(answers))
	if n < need {
		return n, fmt.Errorf("%s is on %d stores, %d are needed: try again when they are back: %w: %w", name, n, need, ErrTooFewStores, failures(answers))
	}
	return n, nil
}

// RemoveKey makes a password open the repository no longer, and returns how many
// stores may still have its object, which opens nothing any more: a prune removes
// it. Another key stays that at least 1+d stores have, and without force the one that
// this repository was opened with. Whoever has the password and a copy of its object,
// or has had the master key, keeps what that opens. ErrNotFound: no key has this ID.
func (r *Repository) RemoveKey(ctx context.Context, id string, force bool) (left int, err error) {
	all, err := r.keyRecords(ctx)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(all, func(k keyRecord) bool { return k.ID == id })
	if i < 0 {
		return 0, fmt.Errorf("key %s: %w", id, ErrNotFound)
	}
	others, most := 0, 0 // keys, stores
	for n, k := range all {
		if n != i && k.opens() {
			others, most = others+1, max(most, k.Stores)
		}
	}
	switch quorum := r.membership().quorum(); {
	case others == 0:
		return 0, fmt.Errorf("key %s is the only one: without it nobody could open the repository; add another password first: %w", id, ErrInvalid)
	case all[i].epoch > r.membership().epochs():
		return 0, fmt.Errorf("key %s is of a rotation that is not finished, or was given up: it opens nothing, and the next rotation removes it: %w", id, ErrInvalid)
	case most < quorum:
		return 0, fmt.Errorf("without key %s, no key is on more than %d of the stores that answer, and %d are needed: run \"cairn repo repair --apply\" first: %w", id, most, quorum, ErrInvalid)
	case all[i].Current && !force:
		return 0, fmt.Errorf("key %s is of the password that is being used: open the repository with another one, or ask for it by force: %w", id, ErrInvalid)
	}
	if err = r.markRemoved(ctx, id); err != nil {
		return 0, err
	}
	if err = r.someKeyLeft(ctx, all[i]); err != nil {
		return 0, err
	}
	return r.dropKey(ctx, id), r.notRotating(ctx, all[i])
}

// notRotating looks behind the mark of a key that was removed whether its password may
// go on working under a new one: a rotation that was begun with it looks for the mark
// before it publishes, but may have looked before.
func (r *Repository) notRotating(ctx context.Context, gone keyRecord) error {
	if !gone.opens() {
		return nil
	}
	names, away, err := r.unionOf(ctx, changePrefix)
	if n := len(r.membership().Stores); err == nil && n-away < n-n/2 {
		err = ErrTooFewStores
	}
	if err == nil {
		err = r.refreshMembership(ctx)
	}
	if err != nil {
		return fmt.Errorf("key %s is removed; whether the key is being rotated with its password could not be read: look at \"cairn repo key list\" when more stores answer: %w", gone.ID, err)
	}
	rotating := r.membership().epochs() != gone.epoch
	for name, ms := range names {
		c, cerr := r.readChange(ctx, ms, name)
		rotating = rotating || cerr == nil && c.What == changeRotate && !c.over(r.membership(), len(ms)+away)
	}
	if rotating {
		return fmt.Errorf("key %s is removed, but the key of the repository is being rotated, and if that was begun with its password this goes on working: look at \"cairn repo key list\" when the rotation is done, or give it up with \"cairn repo changes --abandon\": %w", gone.ID, ErrChange)
	}
	return nil
}

// markRemoved makes a key open nothing any more, wherever its object is.
func (r *Repository) markRemoved(ctx context.Context, id string) error {
	kid, err := parseIdent(id)
	if err != nil {
		return err
	}
	if _, err = r.putOnAll(ctx, kindRemovedKey, removedKeyName(kid), nil); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	return nil
}

// dropKey deletes the objects of a key that was removed, and returns how many stores
// may still have theirs.
func (r *Repository) dropKey(ctx context.Context, id string) (left int) {
	answers := ask(ctx, r.o.Timing, r.current(), len(r.current()), func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.store.Delete(ctx, keyPrefix+id)
	})
	return len(answers) - len(succeeded(answers))
}

// someKeyLeft looks again behind the mark of a key. When another process removed
// all others meanwhile, the key comes back under a new ID: marks are for ever, and
// who is told that a password was removed must be right. Of two that do this to each
// other at least the later one sees both marks.
func (r *Repository) someKeyLeft(ctx context.Context, gone keyRecord) error {
	all, err := r.keyRecords(ctx)
	if err != nil {
		return fmt.Errorf("key %s is removed; whether another one is left could not be read: %w", gone.ID, err)
	}
	if slices.ContainsFunc(all, func(k keyRecord) bool { return k.opens() }) {
		return nil
	}
	if !gone.opens() {
		return fmt.Errorf("all other keys were removed meanwhile: no password opens the repository any more, only the recovery sheet: %w", ErrTooFewStores)
	}
	id, err := newIdent()
	if err == nil {
		_, err = r.putOnAllAt(ctx, gone.epoch, r.membership().quorum(), kindKey, keyName(id), gone.payload)
	}
	if err != nil {
		return fmt.Errorf("all other keys were removed meanwhile, and key %s could not be put back: the recovery sheet opens the repository: %w", gone.ID, err)
	}
	return fmt.Errorf("key %s is the only one, as all others were removed meanwhile: it stays, as key %s: %w", gone.ID, id, ErrInvalid)
}
