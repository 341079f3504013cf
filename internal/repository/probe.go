package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// probeRacers is how many writers race for one name.
const probeRacers = 8

// Capability is something that a store must be able to do, and that is tried.
type Capability string

// Capabilities of stores. A repository needs all of them.
const (
	CreateOnce     Capability = "create-once"      // of several that create one name at once exactly one succeeds
	ReadAfterWrite Capability = "read-after-write" // what was written is what is read, from then on
	ListAfterWrite Capability = "list-after-write" // and is listed
)

// capabilities are all that there are.
func capabilities() []Capability { return []Capability{CreateOnce, ReadAfterWrite, ListAfterWrite} }

// incapable says that a store lacks a capability.
type incapable struct {
	what Capability
	text string
}

// Error returns the sentence.
func (e *incapable) Error() string { return e.text }

// probeOnce proves the one property that safety hangs on: of several writers
// that create a name at once exactly one succeeds, and what it wrote is read
// and listed from then on.
func probeOnce(ctx context.Context, s objstore.Store) error {
	id, err := newIdent()
	if err != nil {
		return err
	}
	name := probePrefix + id.String()
	won := make(chan byte, probeRacers)
	failed := make(chan error, probeRacers)
	for i := range byte(probeRacers) {
		go func() {
			putErr := s.Put(ctx, name, probeBody(i))
			if putErr == nil {
				won <- i
			} else if !errors.Is(putErr, objstore.ErrExist) {
				failed <- putErr
			}
			failed <- nil
		}()
	}
	var errs []error
	for done := 0; done < probeRacers; {
		if putErr := <-failed; putErr != nil {
			errs = append(errs, putErr)
		} else {
			done++
		}
	}
	close(won)
	if err = errors.Join(errs...); err != nil {
		return errors.Join(err, s.Delete(context.WithoutCancel(ctx), name))
	}
	err = probeSeen(ctx, s, name, won)
	return errors.Join(err, s.Delete(context.WithoutCancel(ctx), name))
}

func probeBody(i byte) []byte { return bytes.Repeat([]byte{i}, 64) }

// probeSeen checks what came of the race.
func probeSeen(ctx context.Context, s objstore.Store, name string, won <-chan byte) error {
	winners := make([]byte, 0, 1)
	for i := range won {
		winners = append(winners, i)
	}
	if len(winners) != 1 {
		return &incapable{CreateOnce, fmt.Sprintf("%s: of %d writers that created one name at once, %d were told that they did, instead of one: it cannot be pruned safely", s.URL(), probeRacers, len(winners))}
	}
	got, err := s.Get(ctx, name, 0, -1, nil)
	if errors.Is(err, objstore.ErrNotExist) {
		return &incapable{ReadAfterWrite, s.URL() + ": it does not have what was just written: it cannot be pruned safely"}
	}
	if err != nil {
		return fmt.Errorf("read what was just written: %w", err)
	}
	if !bytes.Equal(got, probeBody(winners[0])) {
		return &incapable{CreateOnce, s.URL() + ": it returned other bytes than the writer wrote that was told to have created the name: it cannot be pruned safely"}
	}
	listed := 0
	err = s.List(ctx, name, func(i objstore.Info) error {
		if i.Name == name && i.Size == int64(len(got)) {
			listed++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list what was just written: %w", err)
	}
	if listed != 1 {
		return &incapable{ListAfterWrite, s.URL() + ": it does not list what was just written: it cannot be pruned safely"}
	}
	return nil
}
