// Package repository keeps backups on a set of stores: sessions write them,
// images read them back.
//
// A repository has n stores, none of which is trusted with more than keeping
// objects. A pack of sealed chunks is cut into k+m shards, one for each of k+m
// stores; everything else – keys, root records, votes – is on every store. What
// writers, readers and prunes may conclude from what they see is PROTOCOL.md; the
// bytes are described in FORMAT.md.
package repository

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/pack"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// blockSize is the only one that this version writes.
const blockSize = 64 << 10

// Options open a repository.
type Options struct {
	Stores   []objstore.Store // closed by Repository.Close; any order; those that are down count as missing
	Password []byte           // cleared by nobody
	Master   *MasterKey       // in the place of a password
	CacheDir string           // folder of the dedup index; empty = no index
	Agent    string           // who writes, for people: host name and process
	Logger   *slog.Logger     // nil = silent
	Timing   Timing
	Cache    CacheSizes
	FS       vfs.FS           // of CacheDir; nil = the operating system
	Now      func() time.Time // nil = time.Now
}

// CacheSizes bound the memory of the read side and the disk of the index, in
// bytes. Zero means the default.
type CacheSizes struct {
	Nodes  int64 // decoded manifest nodes; default 16 MiB
	Blocks int64 // opened blocks, shared by all images; default 32 MiB
	Index  int64 // file of the dedup index; default 512 MiB, which knows 500 GiB of blocks
}

func (c CacheSizes) withDefaults() CacheSizes {
	set := func(n *int64, v int64) {
		if *n <= 0 {
			*n = v
		}
	}
	set(&c.Nodes, 16<<20)
	set(&c.Blocks, 32<<20)
	set(&c.Index, 512<<20)
	return c
}

// Repository is an open repository. Its methods may be called concurrently.
type Repository struct {
	o    Options
	id   ident
	keys keyring

	coder *pack.Coder
	index *index // nil = none
	nodes *lru[nodeKey, []byte]
	cells *lru[chunk.Location, []byte]
	moves *lru[chunk.PackID, []*forwarding]
	packs *bufferPool // containers
	parts *bufferPool // shards

	catching catching // up with a rotation

	pace   pace        // of reads
	moving atomic.Bool // some pack was found to be forwarded

	mu        sync.Mutex
	members   *membership
	byID      map[ident]*member
	keyName   string           // of the object that the password opened; empty: none did
	confirmed string           // what the newest sealing epoch that stays is recognized by; see confirm
	unknown   []*unknownStore  // given, and not known to be a member
	joined    []objstore.Store // that became members, or were to, since the repository was opened
	domains   map[string]*chunk.Domain
	sound     map[string]*damage // by ID of backups: damage that their sessions knew of and heeded
	rootSeen  map[string]*root   // authenticated root records by name, without their trees

	seenAttributes int // bytes of the attributes in rootSeen
}

// unknownStore is a store that was given and is no member, or was not reached.
type unknownStore struct {
	store objstore.Store
	state StoreState
	err   error
}

// Info returns what the repository is.
func (r *Repository) Info() Info {
	m := r.membership()
	return Info{
		ID: r.id.String(), Data: m.Data, Parity: m.Parity, Losses: m.Losses,
		Stores: len(m.Stores), BlockSize: m.BlockSize, Format: m.MinReader,
	}
}

// Close closes the stores and the index. All sessions and images must have
// ended.
func (r *Repository) Close() error {
	var errs []error
	if r.index != nil {
		errs = append(errs, r.index.close())
	}
	r.mu.Lock()
	stores := slices.Concat(r.o.Stores, r.joined)
	r.mu.Unlock()
	for _, s := range stores {
		errs = append(errs, s.Close())
	}
	errs = append(errs, r.packs.close(), r.parts.close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the repository: %w", err)
	}
	return nil
}

func (r *Repository) membership() *membership {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members
}

// current returns the members in the order of the membership record.
func (r *Repository) current() []*member {
	r.mu.Lock()
	defer r.mu.Unlock()
	ms := make([]*member, 0, len(r.members.Stores))
	for _, id := range r.members.Stores {
		ms = append(ms, r.memberLocked(id))
	}
	return ms
}

// memberLocked returns the member with the ID, one without a store if there is
// none.
func (r *Repository) memberLocked(id ident) *member {
	m := r.byID[id]
	if m == nil {
		m = &member{id: id}
		r.byID[id] = m
	}
	return m
}

// holders returns who keeps the shards of a pack, nil when its epoch is
// unknown.
func (r *Repository) holders(p chunk.PackID) []*member {
	r.mu.Lock()
	defer r.mu.Unlock()
	slots := r.members.slots(p.Epoch())
	if slots == nil {
		return nil
	}
	ms := make([]*member, len(slots))
	for i, id := range slots {
		ms[i] = r.memberLocked(id)
	}
	return ms
}

// domain returns the keys of a project.
func (r *Repository) domain(project string) (*chunk.Domain, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.domains[project]; d != nil {
		return d, nil
	}
	d, err := chunk.NewDomain(r.keys.content, r.id, project)
	if err != nil {
		return nil, fmt.Errorf("keys of project %q: %w", project, err)
	}
	d.SealBy(r.contentKey)
	r.domains[project] = d
	return d, nil
}

// getControl reads a control object whole and authenticates it.
func (r *Repository) getControl(ctx context.Context, s objstore.Store, kd kind, name string) ([]byte, error) {
	object, err := getObject(ctx, s, name)
	if err != nil {
		return nil, err
	}
	payload, err := r.keys.openEnvelope(kd, name, object)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.URL(), err)
	}
	return payload, nil
}

func getObject(ctx context.Context, s objstore.Store, name string) ([]byte, error) {
	return getBounded(ctx, s, name, maxControl)
}

func getBounded(ctx context.Context, s objstore.Store, name string, limit int64) ([]byte, error) {
	size, err := s.Stat(ctx, name)
	if err != nil {
		return nil, err //nolint:wrapcheck // stores name themselves and the object
	}
	if size > limit {
		return nil, fmt.Errorf("%s: %s has %d bytes: %w", s.URL(), name, size, errEnvelope)
	}
	return s.Get(ctx, name, 0, size, nil) //nolint:wrapcheck // as above
}

func (r *Repository) warn(ctx context.Context, text string, attrs ...slog.Attr) {
	if r.o.Logger != nil {
		r.o.Logger.LogAttrs(ctx, slog.LevelWarn, text, attrs...) //nolint:sloglint // the callers give constants
	}
}
