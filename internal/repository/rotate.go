package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Rotating the key. At every moment the password that does it opens the repository:
// by its old key until the membership is published, by the new one from then on.
//
//	key       keys/<ID>: the new master key under the password
//	mark      changes/<ID>, which holds the membership to publish: whoever goes on
//	          with it publishes the same bytes
//	publish   members/<v+1>: new placements, sealed under the new key; what opens only
//	          an older key opens nothing from here on
//	remove    the keys of the others: what is left of them is refused anyway
//	          the mark goes
//
// Key and membership have to be on so many stores that any k stores have one with
// them: whoever reads needs both.
//
// A crash before the mark leaves a key that opens nothing; behind it the same
// command goes on, before and behind the publication, for as long as the mark is there.

// Rotation is what RotateKey did.
type Rotation struct {
	Epoch    int   // how often the key was rotated by now
	Key      Key   // that opens the repository: the one of the password that was used
	Stopped  []Key // whose passwords opened it before, and do no longer
	Finished bool  // an earlier rotation was gone on with; no other was begun
	Left     int   // objects of those keys that may still be on stores, which nobody opens
}

// RotateKey makes a new master key, under the password that the repository was opened
// with, and seals under it what is written from now on: by sessions that begin behind
// it. All other passwords and all recovery sheets open nothing any more. What was
// written before stays as it is, and so do chunk IDs, names and the tags of control
// objects: see FORMAT.md. One that was interrupted is gone on with.
//
// It is a change of the membership: ErrChange while another is not finished.
func (r *Repository) RotateKey(ctx context.Context) (Rotation, error) {
	if r.usedKey() == "" {
		return Rotation{}, fmt.Errorf("the new key is sealed under the password that the repository was opened with, and it was opened without one: make one first with \"cairn repo key recover\": %w", ErrInvalid)
	}
	r.reunite(ctx)
	all, err := r.keyRecords(ctx)
	if err != nil {
		return Rotation{}, err
	}
	mark, _, err := r.rotationMark(ctx, r.membership())
	if err != nil {
		return Rotation{}, err
	}
	published := mark != nil
	if !published {
		if !slices.ContainsFunc(all, func(k keyRecord) bool { return k.Current && !k.Old }) {
			return Rotation{}, fmt.Errorf("rotate the key: the password that is used was removed meanwhile: use one that \"cairn repo key list\" shows: %w", ErrPassword)
		}
		if mark, err = r.rotate(ctx, all); err != nil {
			return Rotation{}, fmt.Errorf("rotate the key: %w", err)
		}
	}
	done, err := r.settleRotation(ctx, mark)
	done.Finished = published
	if err != nil {
		return done, fmt.Errorf("rotate the key: the new one counts already, give the same command again to end it: %w", err)
	}
	return done, nil
}

// rotate makes the new master key and publishes it.
func (r *Repository) rotate(ctx context.Context, all []keyRecord) (*changeRecord, error) {
	c, keys, err := r.newRotation(ctx, all)
	if err != nil {
		return nil, err
	}
	begun, err := r.beginChange(ctx, c)
	if err != nil {
		return nil, err
	}
	if begun.Next == nil || begun.Next.Version != begun.Version+1 {
		return nil, errors.Join(fmt.Errorf("the stores of the repository were changed meanwhile: give the same command again: %w", ErrChange), r.endChange(ctx, begun.Change))
	}
	if err = r.stillWanted(ctx, begun, c.Began.IsZero()); err != nil {
		return nil, err
	}
	// Only what is published is followed: another rotation may come in the place of
	// one that gets to too few stores.
	if err = r.putMembership(ctx, &keys, begun.Next, nil, begun.Next.readerQuorum()); err != nil {
		return nil, fmt.Errorf("the new key does not count yet (if a store is gone for good, \"cairn repo changes --abandon %s --without STORE\" gives the rotation up): %w", begun.Change, err)
	}
	if err = r.keys.sealing.follow(keys.sealing.all(), r.id); err != nil {
		return nil, err
	}
	r.adopt(begun.Next)
	r.mu.Lock()
	r.keyName = keyName(begun.Key)
	r.mu.Unlock()
	return begun, nil
}

// stillWanted looks again behind the mark, right before the publication: whoever
// removed the password that rotates, or the new key, must be right. Who removes a
// password looks for marks behind that, so that one of the two sees the other. The
// mark of one that somebody else began stays, as it may be published somewhere; this
// process's own is given up like any other.
func (r *Repository) stillWanted(ctx context.Context, begun *changeRecord, own bool) error {
	removed, err := r.removedKeys(ctx)
	if err != nil {
		return err
	}
	fresh := keyName(begun.Key)
	if !removed[fresh] && !removed[r.usedKey()] {
		return nil
	}
	if !own {
		return fmt.Errorf("its key, or the password that is used, was removed meanwhile: \"cairn repo changes --abandon %s\" gives the rotation up: %w", begun.Change, ErrChange)
	}
	// Whoever has the same password may go on with the mark, and be done by now: its key is
	// the only one that opens the repository then.
	if err = r.refreshMembership(ctx); err == nil && r.membership().follows(begun.Next) && !removed[fresh] {
		return nil
	}
	return errors.Join(fmt.Errorf("its key, or the password that is used, was removed meanwhile: \"cairn repo key list\" shows the passwords there are: %w", ErrChange), err, r.giveUpRotation(ctx, begun, nil))
}

// newRotation returns a change that rotates the key, whose key is on the stores, and
// the keys with those of the new one: the change that was begun, or a fresh one.
func (r *Repository) newRotation(ctx context.Context, all []keyRecord) (c changeRecord, keys keyring, err error) {
	marks, err := r.changes(ctx)
	if err != nil {
		return c, keys, err
	}
	if len(marks) > 0 {
		o := marks[0]
		if o.What != changeRotate || o.Next == nil || o.Version < r.membership().Version {
			return c, keys, r.otherChange(o) // also one that is being given up
		}
		keys, err = r.resume(ctx, o, all)
		return *o, keys, err
	}
	old, epoch := r.newestMaster()
	fresh, err := newMasterKey()
	if err != nil {
		return c, keys, err
	}
	c = changeRecord{What: changeRotate}
	for _, id := range []*ident{&c.Change, &c.Key} {
		if *id, err = newIdent(); err != nil {
			return c, keys, err
		}
	}
	if c.Next, err = r.membership().rotated(r.id, old, fresh, r.o.Now().UTC().Truncate(time.Second)); err != nil {
		return c, keys, err
	}
	if keys, err = newKeyring(append(r.keys.sealing.all()[:epoch+1], fresh), r.id); err != nil {
		return c, keys, err
	}
	if c.Next.Proof, err = keys.prove(c.Next); err != nil {
		return c, keys, err
	}
	label, params := "", defaultKDF()
	for _, k := range all {
		if k.Current {
			label, params = k.Label, kdfParams{Time: k.KDF.Time, Memory: k.KDF.MemoryKiB, Threads: k.KDF.Threads}
		}
	}
	if _, err = r.putKey(ctx, c.Key, fresh, epoch+1, c.Next.readerQuorum(), r.o.Password, label, params); err != nil {
		// There is no mark that names it: it would be in everybody's way for ever.
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		r.dropKey(cleanup, c.Key.String())
	}
	return c, keys, err
}

// resume returns the keys of a rotation that was begun and not finished. Its key was
// made with a password, which has to be the one at hand: it is the only one that opens
// the repository behind it.
func (r *Repository) resume(ctx context.Context, o *changeRecord, all []keyRecord) (keys keyring, err error) {
	other := fmt.Errorf("a rotation of the key that was begun with another password is not finished (by %s since %s UTC): give the same command with that one; if that cannot be, \"cairn repo changes --abandon %s\", with --without for stores that are gone for good: %w",
		o.By, o.Began.UTC().Format(time.DateTime), o.Change, ErrChange)
	i := slices.IndexFunc(all, func(k keyRecord) bool { return k.ID == o.Key.String() && !k.Damaged })
	if i < 0 || o.Next.check() != nil || o.Next.epochs() != r.membership().epochs()+1 {
		return keys, other
	}
	fresh, err := unwrap(all[i].payload, r.o.Password, r.id, o.Next.epochs())
	if errors.Is(err, ErrPassword) {
		return keys, other
	}
	if err != nil {
		return keys, err
	}
	masters, err := o.Next.masters(r.id, o.Next.epochs(), fresh)
	if err != nil {
		return keys, err
	}
	if keys, err = newKeyring(masters, r.id); err != nil {
		return keys, err
	}
	if err = keys.proved(o.Next); err != nil {
		return keys, err
	}
	_, err = r.putOnAllAt(ctx, o.Next.epochs(), o.Next.readerQuorum(), kindKey, keyName(o.Key), all[i].payload)
	return keys, err
}

// settleRotation ends a rotation that was published: it tells the stores that were
// away, removes the keys that open nothing any more, and the mark last.
func (r *Repository) settleRotation(ctx context.Context, mark *changeRecord) (Rotation, error) {
	done := Rotation{Epoch: r.membership().epochs()}
	need := r.membership().readerQuorum()
	if err := r.publishMembership(ctx, r.membership(), nil, need); err != nil {
		return done, err
	}
	all, err := r.keyRecords(ctx)
	if err != nil {
		return done, err
	}
	for _, k := range all {
		if k.Current {
			done.Key = k.Key
		}
	}
	if done.Key.Stores < need {
		return done, fmt.Errorf("the new key is on %d of the stores that answer, and %d are needed: run \"cairn repo repair --apply\" when they are back: %w", done.Key.Stores, need, ErrTooFewStores)
	}
	for _, k := range all {
		if !k.Old || k.Damaged || k.epoch > done.Epoch {
			continue // one of a later epoch is of the next rotation
		}
		if err = r.markRemoved(ctx, k.ID); err != nil {
			return done, err
		}
		done.Left += r.dropKey(ctx, k.ID)
		// Of the password that is used there is an old key as well.
		if _, err := unwrap(k.payload, r.o.Password, r.id, k.epoch); err != nil && k.epoch < done.Epoch {
			done.Stopped = append(done.Stopped, k.Key)
		}
	}
	return done, r.endChange(ctx, mark.Change)
}
