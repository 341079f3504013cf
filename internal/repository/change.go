package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// A change of the membership – a store replaced, a store added, the key rotated – is begun with a
// mark on every store that answers, and its last step is the record
// "members/<v+1>". Between the two no prune goes on: it needs every store, so
// that it meets the mark or the record wherever either is. Prunes look at P0, and
// at P8 right before they delete. PROTOCOL.md says why that is enough.

// changeRecord is the payload of "changes/<id>".
type changeRecord struct {
	Change  ident     `json:"change"`
	What    string    `json:"what"`
	Version uint64    `json:"version"` // of the membership that it starts from; a newer one says that it is done
	Lost    ident     `json:"lost,omitzero"`
	Joining ident     `json:"joining"`
	By      string    `json:"by"`
	Began   time.Time `json:"began"`

	// Of a rotation of the key, so that whoever goes on with it publishes the
	// same: the membership that it ends with, and the key that opens it.
	Next *membership `json:"next,omitempty"`
	Key  ident       `json:"key,omitzero"`
}

const (
	changeRotate  = "rotate the key"
	changeReplace = "replace a store"
	changeAdd     = "add a store"
)

// Change is a change of the repository's stores that is under way, or whose
// process died.
type Change struct {
	ID      string
	What    string // in words
	Lost    string // store ID; empty when a store is added
	Joining string // empty when no store joins
	By      string // host name and process
	Began   time.Time
}

func (c *changeRecord) info() Change {
	out := Change{ID: c.Change.String(), What: c.What, By: c.By, Began: c.Began}
	if c.Lost != (ident{}) {
		out.Lost = c.Lost.String()
	}
	if c.Joining != (ident{}) {
		out.Joining = c.Joining.String()
	}
	return out
}

// Changes returns the changes that are not finished.
func (r *Repository) Changes(ctx context.Context) ([]Change, error) {
	r.reunite(ctx)
	if err := r.refreshMembership(ctx); err != nil {
		return nil, err
	}
	all, err := r.changes(ctx)
	if err != nil {
		return nil, err
	}
	var out []Change
	for _, c := range all {
		out = append(out, c.info())
	}
	return out, nil
}

// over says whether a change has ended, as the membership is a newer one than it began
// with. A rotation that is being given up has not: it may be published yet, where the
// name for that is free, and that outranks every membership before it. Its mark is on
// more than half of the stores; on is how many of the members have it or do not answer.
func (c *changeRecord) over(m *membership, on int) bool {
	return c.Version < m.Version && (!c.rotates() || c.Next.epochs() <= m.epochs() || on <= len(m.Stores)/2)
}

// rotates says whether a mark is one of a rotation, which has a name to publish under.
func (c *changeRecord) rotates() bool {
	return c.What == changeRotate && c.Next != nil && c.Next.Version == c.Version+1
}

// changes reads the marks of unfinished changes from all members that answer.
func (r *Repository) changes(ctx context.Context) ([]*changeRecord, error) {
	names, away, err := r.unionOf(ctx, changePrefix)
	if err != nil {
		return nil, err
	}
	var out []*changeRecord
	var errs []error
	for name, ms := range names {
		c, err := r.readChange(ctx, ms, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case !c.over(r.membership(), len(ms)+away):
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *changeRecord) int { return a.Began.Compare(b.Began) })
	return out, errors.Join(errs...)
}

// readChange reads a mark from the first of the members that has a genuine one.
func (r *Repository) readChange(ctx context.Context, ms []*member, name string) (*changeRecord, error) {
	c := &changeRecord{}
	payload, err := r.firstControl(ctx, ms, kindChange, name)
	if err == nil {
		err = decodeJSON(payload, c)
	}
	if err == nil && changeName(c.Change) != name {
		err = fmt.Errorf("%s says that it is %s: %w", name, c.Change, errEnvelope)
	}
	if err != nil {
		return nil, fmt.Errorf("the mark of a change of the stores cannot be read: when no change is under way, \"cairn repo changes --abandon %s\" removes it: %w", strings.TrimPrefix(name, changePrefix), err)
	}
	return c, nil
}

// beginChange puts the mark. It goes on with one that was begun for the same and
// not finished; any other is refused. Of two that begin at once at least one sees
// the other, as each has its mark on most stores before it looks.
func (r *Repository) beginChange(ctx context.Context, c changeRecord) (*changeRecord, error) {
	if err := r.upToDate(ctx); err != nil {
		return nil, err
	}
	c.Version, c.By, c.Began = r.membership().Version, r.o.Agent, r.o.Now().UTC()
	before, err := r.changes(ctx)
	if err != nil {
		return nil, err
	}
	// The mark of a rotation that somebody else may have published says so until it is
	// done; see confirm.
	kept := c.What == changeRotate && len(before) > 0
	giveWay := func(err error) error {
		if kept {
			return err
		}
		return errors.Join(err, r.endChange(ctx, c.Change))
	}
	for _, o := range before {
		if o.What != c.What || o.Lost != c.Lost || o.Joining != c.Joining || o.Key != c.Key {
			return nil, r.otherChange(o)
		}
		c = *o
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("begin a change: %w", err)
	}
	object, err := r.keys.sealEnvelope(kindChange, changeName(c.Change), payload)
	if err != nil {
		return nil, err
	}
	ms := r.staying(c.Lost)
	enough := max(1, min(len(ms), len(r.membership().Stores)/2+1))
	answers := ask(ctx, r.o.Timing, ms, len(ms), r.puts(changeName(c.Change), object))
	if n := len(succeeded(answers)); n < enough {
		return nil, giveWay(fmt.Errorf("%d stores can be reached, a change of the stores needs %d: %w: %w", n, enough, ErrTooFewStores, failures(answers)))
	}
	after, err := r.changes(ctx)
	if err != nil {
		return nil, err
	}
	// One that ended before it could see our mark has published by now.
	if err = r.upToDate(ctx); err != nil {
		return nil, err
	}
	if r.membership().Version > c.Version {
		return nil, giveWay(fmt.Errorf("the stores of the repository were changed meanwhile: give the same command again: %w", ErrChange))
	}
	for _, o := range after {
		if o.Change != c.Change {
			return nil, giveWay(r.otherChange(o))
		}
	}
	return &c, nil
}

func (r *Repository) otherChange(o *changeRecord) error {
	return fmt.Errorf("another change of the repository's stores is not finished (%s: %s, by %s since %s UTC): wait for it or give the same command again; if its process is gone for good, \"cairn repo changes --abandon %s\": %w",
		o.What, orLost(o), o.By, o.Began.UTC().Format(time.DateTime), o.Change, ErrChange)
}

func orLost(o *changeRecord) string {
	if o.What == changeRotate {
		return "to the one of key " + o.Key.String()
	}
	if o.Lost == (ident{}) {
		return "store " + o.Joining.String()
	}
	return "store " + o.Lost.String() + " by " + o.Joining.String()
}

// staying are the members but one.
func (r *Repository) staying(lost ident) []*member {
	return slices.DeleteFunc(r.current(), func(m *member) bool { return m.id == lost })
}

// endChange removes a mark where it can. One that stays somewhere is finished as
// soon as the membership is a newer one.
func (r *Repository) endChange(ctx context.Context, id ident) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	answers := ask(ctx, r.o.Timing, r.current(), 0, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.store.Delete(ctx, changeName(id))
	})
	if len(succeeded(answers)) == 0 {
		return fmt.Errorf("remove the mark of a change: %w", failures(answers))
	}
	return nil
}

// publishMembership is the last step of a change: what it says holds as soon as
// one store has it. first, if not nil, gets it before the others, of which need have
// to take it.
func (r *Repository) publishMembership(ctx context.Context, next *membership, first *member, need int) error {
	err := r.putMembership(ctx, &r.keys, next, first, need)
	if err == nil {
		r.adopt(next)
	}
	return err
}

// putMembership is publishMembership by keys that may not be those of the repository
// yet.
func (r *Repository) putMembership(ctx context.Context, keys *keyring, next *membership, first *member, need int) error {
	if err := next.check(); err != nil {
		return err
	}
	name, object, err := keys.sealMembership(next)
	if err != nil {
		return err
	}
	put := r.puts(name, object)
	ms := slices.DeleteFunc(r.current(), func(m *member) bool { return !next.has(m.id) })
	if first != nil {
		if _, err = one(ctx, r, first, put); err != nil {
			return fmt.Errorf("the new store does not take %s: %w", name, err)
		}
	}
	answers := ask(ctx, r.o.Timing, ms, len(ms), put)
	if n := len(succeeded(answers)); n < need && n < len(ms) {
		return fmt.Errorf("%s is on %d stores, %d are needed: give the same command again: %w: %w", name, n, need, ErrTooFewStores, failures(answers))
	}
	return nil
}
