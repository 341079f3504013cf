package repository

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/attributes"
)

// maxSeenRoots and maxSeenAttributes (bytes) bound the memory for root records
// that were read before.
const (
	maxSeenRoots      = 20000
	maxSeenAttributes = 32 << 20
)

// rootRecord is the first part of a root record's plaintext.
type rootRecord struct {
	BackupID    string    `json:"backup_id"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Project     string    `json:"project"`
	VolumeID    string    `json:"volume_id"`
	Volume      string    `json:"volume"`
	Size        int64     `json:"size"`
	BlockSize   int       `json:"block_size"`
	Created     time.Time `json:"created"`
	Parent      string    `json:"parent"`
	Session     ident     `json:"session"`
	Voters      []ident   `json:"voters"`
	URLs        []string  `json:"urls,omitempty"` // where the voters were, in their order; empty = its writer did not know
	Stats       Stats     `json:"stats"`

	RetainUntil time.Time `json:"retain_until,omitzero"` // not deleted before
	Retained    time.Time `json:"retained,omitzero"`     // to here, all that it reaches, on stores that lock

	// Attributes are in their normal form; nil = none.
	Attributes json.RawMessage `json:"attributes,omitempty"`

	Pin *pinRecord `json:"pin,omitempty"` // not a backup but somebody's use of one
}

// digest is what votes name a root record by: BLAKE3-256 of the object.
type digest [32]byte

// String returns the digest as votes have it.
func (d digest) String() string { return hex.EncodeToString(d[:]) }

// root is a root record that was read and authenticated.
type root struct {
	name   string // of the object
	rec    rootRecord
	digest digest
	top    []byte // nil when it was not kept
}

func (r *root) geometry() blockmap.Geometry {
	return blockmap.Geometry{Size: r.rec.Size, BlockSize: r.rec.BlockSize}
}

// backup is what a root record says; one that is a pin is called so.
func (r *root) backup(s State) Backup {
	b := Backup{
		ID: r.rec.BackupID, Name: r.rec.Name, Description: r.rec.Description, Project: r.rec.Project,
		VolumeID: r.rec.VolumeID, Volume: r.rec.Volume, Size: r.rec.Size, BlockSize: r.rec.BlockSize,
		Created: r.rec.Created, Parent: r.rec.Parent, Incremental: r.rec.Parent != "",
		Session: r.rec.Session.String(), Stats: r.rec.Stats, State: s, RetainUntil: r.rec.RetainUntil,
		Attributes: bytes.Clone(r.rec.Attributes),
	}
	if p := r.rec.Pin; p != nil {
		b.Name = fmt.Sprintf("pin of backup %s, %s", p.Backup, p.By)
	}
	return b
}

// sealRoot returns the object of a root record, under the key of a sealing epoch.
func (k *keyring) sealRoot(epoch int, name string, rec *rootRecord, top []byte) ([]byte, error) {
	head, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	plain := binary.BigEndian.AppendUint32(nil, uint32(len(head))) //nolint:gosec // far below
	plain = append(append(plain, head...), top...)
	keys, err := k.sealing.at(epoch)
	if err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	aead, err := chacha20poly1305.NewX(keys.root[:])
	if err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	return k.sealEnvelopeAt(epoch, kindRoot, name, aead.Seal(nonce, nonce, plain, []byte(name)))
}

// openRoot is the inverse of sealRoot. errEpoch: it is genuine, and of a sealing
// epoch that is not known.
func (k *keyring) openRoot(name string, object []byte) (*root, error) {
	e, err := k.authenticate(kindRoot, name, object)
	if err != nil {
		return nil, err
	}
	payload := e.payload
	keys, err := k.sealing.at(e.epoch)
	if err != nil {
		return nil, fmt.Errorf("root record %s: %w", name, err)
	}
	aead, err := chacha20poly1305.NewX(keys.root[:])
	if err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	if len(payload) < aead.NonceSize() {
		return nil, fmt.Errorf("root record of %d bytes: %w", len(payload), errEnvelope)
	}
	plain, err := aead.Open(nil, payload[:aead.NonceSize()], payload[aead.NonceSize():], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("root record %s does not open: %w", name, errEnvelope)
	}
	if len(plain) < 4 {
		return nil, fmt.Errorf("root record of %d bytes: %w", len(plain), errEnvelope)
	}
	n := int64(binary.BigEndian.Uint32(plain))
	if n > int64(len(plain)-4) {
		return nil, fmt.Errorf("root record whose head has %d of %d bytes: %w", n, len(plain), errEnvelope)
	}
	r := &root{name: name, digest: blake3.Sum256(object), top: plain[4+n:]}
	if err = decodeJSON(plain[4:4+n], &r.rec); err != nil {
		return nil, fmt.Errorf("root record: %w", err)
	}
	if s, ok := rootSession(name); !ok || s != r.rec.Session {
		return nil, fmt.Errorf("root record %s is of session %s: %w", name, r.rec.Session, errEnvelope)
	}
	if err = r.geometry().Validate(); err != nil {
		return nil, fmt.Errorf("root record %s: %w: %w", name, err, errEnvelope)
	}
	if r.rec.Attributes, err = attributes.Normal(r.rec.Attributes); err != nil {
		r.rec.Attributes = nil // no backup is lost for the notes to it
	}
	return r, nil
}

// readRoot reads a root record from the first of the stores that has a genuine
// one, with its tree.
func (r *Repository) readRoot(ctx context.Context, ms []*member, name string) (*root, error) {
	rt, err := r.readRootOnce(ctx, ms, name)
	if errors.Is(err, errEpoch) {
		if cerr := r.catchUp(ctx); cerr != nil {
			return nil, cerr
		}
		rt, err = r.readRootOnce(ctx, ms, name)
	}
	switch {
	case err == nil:
		r.remember(rt)
		return rt, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("read a root record: %w", err)
	case errors.Is(err, errEpoch):
		return nil, laterEpoch(err)
	}
	return nil, fmt.Errorf("root record %s: %w: %w", name, ErrDamaged, err)
}

func (r *Repository) readRootOnce(ctx context.Context, ms []*member, name string) (*root, error) {
	return firstOf(ctx, r, ms, func(ctx context.Context, m *member) (*root, error) {
		object, err := getObject(ctx, m.store, name)
		if err != nil {
			return nil, err
		}
		rt, err := r.keys.openRoot(name, object)
		if errors.Is(err, errEpoch) {
			return nil, err
		}
		if err != nil {
			m.health.lied(r.o.Now(), r.o.Timing.Aside)
			return nil, fmt.Errorf("%s: %w", m.url(), err)
		}
		return rt, nil
	})
}

// remember keeps a root record without its tree. Root records never change.
// Attributes may be long, so there is a limit on them too.
func (r *Repository) remember(rt *root) {
	head := *rt
	head.top = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.rootSeen[rt.name]; old != nil {
		r.seenAttributes -= len(old.rec.Attributes)
	}
	if len(r.rootSeen) >= maxSeenRoots || r.seenAttributes+len(head.rec.Attributes) > maxSeenAttributes {
		clear(r.rootSeen)
		r.seenAttributes = 0
	}
	r.seenAttributes += len(head.rec.Attributes)
	r.rootSeen[rt.name] = &head
}

// byHealth returns the members that can be asked, those that failed lately
// last.
func (r *Repository) byHealth(ms []*member) []*member {
	now := r.o.Now()
	var good, poor []*member
	for _, m := range ms {
		switch {
		case m.store == nil:
		case m.health.aside(now):
			poor = append(poor, m)
		default:
			good = append(good, m)
		}
	}
	return append(good, poor...)
}
