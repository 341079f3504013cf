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

// InitOptions say what a new repository is like.
type InitOptions struct {
	Stores       []objstore.Store // one for each shard: Data+Parity
	Data, Parity int              // k and m: any k stores give everything back
	Losses       *int             // further losses that a fresh commit survives; nil = 1, or 0 without parity
	Password     []byte
	KDF          *KDF // nil = argon2id with 64 MiB
}

// KDF are the costs of turning the password into a key.
type KDF struct {
	Time      uint32
	MemoryKiB uint32
	Threads   uint8
}

// Init makes a repository on empty stores. All or nothing: when it fails, it
// takes back what it wrote; what it cannot take back is named in the error, with
// the way out.
func Init(ctx context.Context, o InitOptions) (Info, error) {
	m, err := newMembership(o)
	if err != nil {
		return Info{}, err
	}
	if err = checkEmpty(ctx, o.Stores); err != nil {
		return Info{}, err
	}
	plan, err := initObjects(o, m)
	if err != nil {
		return Info{}, err
	}
	// The identities come last: a store without one is no store, so that a
	// crash leaves nothing that could be taken for a repository.
	for i, step := range plan {
		if err := putAll(ctx, o.Stores, step); err != nil {
			return Info{}, errors.Join(fmt.Errorf("init: %w", err), undo(ctx, o.Stores, plan[:i+1]))
		}
		if i > 0 {
			continue
		}
		err := writeOnce(ctx, o.Stores, step)
		if err == nil {
			err = probeAll(ctx, o.Stores)
		}
		if err != nil {
			return Info{}, errors.Join(fmt.Errorf("init: %w", err), undo(ctx, o.Stores, plan[:1]))
		}
	}
	return Info{
		ID: m.Repository.String(), Data: m.Data, Parity: m.Parity, Losses: m.Losses,
		Stores: len(m.Stores), BlockSize: m.BlockSize, Format: firstFormat,
	}, nil
}

func newMembership(o InitOptions) (*membership, error) {
	losses := 0
	if o.Parity > 0 {
		losses = 1
	}
	if o.Losses != nil {
		losses = *o.Losses
	}
	switch {
	case len(o.Stores) == 0:
		return nil, fmt.Errorf("a repository needs at least one store: %w", ErrInvalid)
	case o.Data < 1 || o.Parity < 0:
		return nil, fmt.Errorf("%d data and %d parity shards make no repository: it takes at least one data shard: %w", o.Data, o.Parity, ErrInvalid)
	case o.Data+o.Parity > 32:
		return nil, fmt.Errorf("%d+%d is more than the 32 shards that a pack can have: %w", o.Data, o.Parity, ErrInvalid)
	case o.Data+o.Parity != len(o.Stores):
		return nil, fmt.Errorf("%d data and %d parity shards need %d stores, %d are given: each store keeps one shard: %w", o.Data, o.Parity, o.Data+o.Parity, len(o.Stores), ErrInvalid)
	case losses < 0 || losses > o.Parity:
		return nil, fmt.Errorf("a commit can be made to survive 0 to %d further losses with %d parity shards, not %d: %w", o.Parity, o.Parity, losses, ErrInvalid)
	case len(o.Password) == 0:
		return nil, fmt.Errorf("a repository needs a password: %w", ErrInvalid)
	}
	seen := make(map[string]bool)
	for _, s := range o.Stores {
		if seen[s.URL()] {
			return nil, fmt.Errorf("store %s is given twice: %w", s.URL(), ErrInvalid)
		}
		seen[s.URL()] = true
	}
	repo, err := newIdent()
	if err != nil {
		return nil, err
	}
	m := &membership{
		Version: 1, Repository: repo,
		MinReader: firstFormat, MinWriter: firstFormat, MinPruner: firstFormat,
		Data: o.Data, Parity: o.Parity, Losses: losses, BlockSize: blockSize,
	}
	for range o.Stores {
		id, err := newIdent()
		if err != nil {
			return nil, err
		}
		m.Stores = append(m.Stores, id)
	}
	m.Placements = []placement{{Epoch: 0, Slots: m.Stores}}
	return m, m.check()
}

// checkEmpty refuses stores that hold anything, and says what.
func checkEmpty(ctx context.Context, stores []objstore.Store) error {
	errFound := errors.New("found")
	for _, s := range stores {
		if object, err := getObject(ctx, s, storeName); err == nil {
			if rec, err := parseStoreRecord(object); err == nil {
				return fmt.Errorf("store %s belongs to repository %s already: name another place, or open that repository: %w", s.URL(), rec.Repository, ErrNotEmpty)
			}
		}
		found := ""
		err := s.List(ctx, "", func(i objstore.Info) error {
			if strings.HasPrefix(i.Name, probePrefix) {
				return nil // left by a probe that was killed: the next prune takes it away
			}
			found = i.Name
			return errFound
		})
		switch {
		case errors.Is(err, errFound):
			return fmt.Errorf("store %s is not empty (it holds %s): name an empty place, or empty it if it is left over from a failed init: %w", s.URL(), found, ErrNotEmpty)
		case err != nil:
			return fmt.Errorf("store %s cannot be used: %w", s.URL(), err)
		}
	}
	return nil
}

// initStep is an object for each store; one for all when there is one.
type initStep struct {
	name    string
	objects [][]byte
}

func (s initStep) object(i int) []byte { return s.objects[i%len(s.objects)] }

func initObjects(o InitOptions, m *membership) ([]initStep, error) {
	master, err := newMasterKey()
	if err != nil {
		return nil, err
	}
	keys, err := master.ring(m.Repository)
	if err != nil {
		return nil, err
	}
	kdf := defaultKDF()
	if o.KDF != nil {
		kdf = kdfParams{Time: o.KDF.Time, Memory: o.KDF.MemoryKiB, Threads: o.KDF.Threads}
	}
	if err = kdf.check(); err != nil {
		return nil, fmt.Errorf("init: %w: %w", err, ErrInvalid)
	}
	w, err := master.wrap(o.Password, m.Repository, 0, kdf)
	if err != nil {
		return nil, err
	}
	w.Created = time.Now().UTC().Truncate(time.Second)
	wrapped, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	keyID, err := newIdent()
	if err != nil {
		return nil, err
	}
	key, err := keys.sealEnvelope(kindKey, keyName(keyID), wrapped)
	if err != nil {
		return nil, err
	}
	membersAt, members, err := keys.sealMembership(m)
	if err != nil {
		return nil, err
	}
	identities := initStep{name: storeName}
	for _, id := range m.Stores {
		payload, err := json.Marshal(storeRecord{Repository: m.Repository, Store: id, State: stateMember, MinReader: firstFormat})
		if err != nil {
			return nil, fmt.Errorf("init: %w", err)
		}
		object, err := keys.sealEnvelope(kindStore, storeName, payload)
		if err != nil {
			return nil, err
		}
		identities.objects = append(identities.objects, object)
	}
	steps := []initStep{{keyName(keyID), [][]byte{key}}, {membersAt, [][]byte{members}}}
	for _, id := range m.Stores {
		object, err := keys.sealCapabilities(m.Repository, id, w.Created)
		if err != nil {
			return nil, err
		}
		steps = append(steps, initStep{capableName(id), [][]byte{object}})
	}
	return append(steps, identities), nil
}

func putAll(ctx context.Context, stores []objstore.Store, step initStep) error {
	for i, s := range stores {
		err := s.Put(ctx, step.name, step.object(i))
		if err != nil {
			// The answer may have been lost; only our own bytes are ours.
			got, getErr := getObject(ctx, s, step.name)
			if getErr != nil || !slices.Equal(got, step.object(i)) {
				return fmt.Errorf("write %s to store %s: %w", step.name, s.URL(), err)
			}
		}
	}
	return nil
}

// writeOnce puts again what is there: no harm where it is refused, as it has to
// be, and none where it is taken. A store that takes a name twice would let a
// vote be changed.
func writeOnce(ctx context.Context, stores []objstore.Store, step initStep) error {
	for i, s := range stores {
		switch err := s.Put(ctx, step.name, step.object(i)); {
		case err == nil:
			return fmt.Errorf("store %s overwrites an object where it has to refuse: name a place on a server that creates objects conditionally (S3: If-None-Match): %w", s.URL(), ErrInvalid)
		case !errors.Is(err, objstore.ErrExist):
			return fmt.Errorf("write %s to store %s once more: %w", step.name, s.URL(), err)
		}
	}
	return nil
}

// undo takes back what steps may have written, latest first. Only own bytes
// are deleted.
func undo(ctx context.Context, stores []objstore.Store, steps []initStep) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var left []string
	for i, s := range stores {
		for _, step := range slices.Backward(steps) {
			got, err := getObject(ctx, s, step.name)
			if errors.Is(err, objstore.ErrNotExist) {
				continue
			}
			if err == nil && slices.Equal(got, step.object(i)) {
				err = s.Delete(ctx, step.name)
			}
			if err != nil {
				left = append(left, s.URL())
				break
			}
		}
	}
	if left != nil {
		return fmt.Errorf("something may be left of the failed init: empty %s before trying again: %w", strings.Join(left, ", "), ErrNotEmpty)
	}
	return nil
}
