package repository

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// A forwarding says where the chunks of a pack went that were alive when the
// pack was compacted. Readers meet it in the place of a pack that is gone.
type forwarding struct {
	old    chunk.PackID
	chunks []movedChunk // in order of kind and ID, none twice
}

// movedChunk is one chunk of an old pack and where it is now.
type movedChunk struct {
	kind chunk.Kind
	id   chunk.ID
	to   chunk.Location
}

// Layout of a forwarding's plaintext; see FORMAT.md.
const (
	forwardHead  = 16 + 32 + 2 + 4
	forwardEntry = 1 + 20 + 2 + 4 + 4
	// maxForwarded is the most chunks that a pack has.
	maxForwarded = 32768
	// maxForwarding bounds an object, before anything of it is believed.
	maxForwarding = envelopeHeader + 2 + envelopeTag + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead +
		forwardHead + maxForwarded*(forwardEntry+32)
)

// forwardFolder is where the forwardings of a pack are: one for each time that
// its chunks were moved and not everything of the last time was tidied away.
func forwardFolder(old chunk.PackID) string {
	return forwardPrefix + strings.TrimPrefix(packName(old), packPrefix) + "/"
}

// forwardName names the forwarding that a compaction, by its session, made of a pack.
func forwardName(old chunk.PackID, session ident) string {
	return forwardFolder(old) + session.String()
}

// parseForwardName is the inverse of forwardName.
func parseForwardName(name string) (chunk.PackID, ident, bool) {
	rest, ok := strings.CutPrefix(name, forwardPrefix)
	cut := strings.LastIndexByte(rest, '/')
	if !ok || cut < 0 {
		return chunk.PackID{}, ident{}, false
	}
	old, ok := parsePackName(packPrefix + rest[:cut])
	session, err := parseIdent(rest[cut+1:])
	return old, session, ok && err == nil
}

func compareMoved(a, b movedChunk) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), bytes.Compare(a.id[:], b.id[:]))
}

// find returns where a chunk went.
func (f *forwarding) find(k chunk.Kind, id chunk.ID) (chunk.Location, error) {
	i, ok := slices.BinarySearchFunc(f.chunks, movedChunk{kind: k, id: id}, compareMoved)
	if !ok {
		return chunk.Location{}, fmt.Errorf("pack %s was compacted and its forwarding does not name the %s chunk %s: %w", f.old, k, id, ErrDamaged)
	}
	return f.chunks[i].to, nil
}

// targets returns the packs that have the chunks now, in order.
func (f *forwarding) targets() []chunk.PackID {
	var packs []chunk.PackID
	for _, c := range f.chunks {
		packs = append(packs, c.to.Pack)
	}
	slices.SortFunc(packs, comparePacks)
	return slices.Compact(packs)
}

func comparePacks(a, b chunk.PackID) int { return bytes.Compare(a[:], b[:]) }

// size is what a forwarding takes in memory, about.
func (f *forwarding) size() int64 { return 128 + 64*int64(len(f.chunks)) }

// check says what is wrong with a forwarding that nobody may have written.
func (f *forwarding) check() error {
	if len(f.chunks) == 0 || len(f.chunks) > maxForwarded {
		return fmt.Errorf("forwarding of pack %s has %d chunks: %w", f.old, len(f.chunks), errEnvelope)
	}
	for i, c := range f.chunks {
		if c.kind != chunk.Data && c.kind != chunk.Node {
			return fmt.Errorf("forwarding of pack %s names a chunk of %s: %w", f.old, c.kind, errEnvelope)
		}
		if i > 0 && compareMoved(f.chunks[i-1], c) >= 0 {
			return fmt.Errorf("forwarding of pack %s is not in order: %w", f.old, errEnvelope)
		}
		if c.to.Pack == f.old {
			return fmt.Errorf("forwarding of pack %s leads back to it: %w", f.old, errEnvelope)
		}
		if err := checkLocation(c.to); err != nil {
			return fmt.Errorf("forwarding of pack %s: %w: %w", f.old, err, errEnvelope)
		}
	}
	return nil
}

// encode returns the plaintext of a forwarding.
func (f *forwarding) encode(repo ident) ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	packs := f.targets()
	out := make([]byte, 0, forwardHead+32*len(packs)+forwardEntry*len(f.chunks))
	out = append(append(out, repo[:]...), f.old[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(packs)))    //nolint:gosec // check bounds the chunks
	out = binary.BigEndian.AppendUint32(out, uint32(len(f.chunks))) //nolint:gosec // as above
	for _, p := range packs {
		out = append(out, p[:]...)
	}
	for _, c := range f.chunks {
		n, _ := slices.BinarySearchFunc(packs, c.to.Pack, comparePacks)
		out = append(append(out, byte(c.kind)), c.id[:]...)
		out = binary.BigEndian.AppendUint16(out, uint16(n)) //nolint:gosec // as above
		out = binary.BigEndian.AppendUint32(out, c.to.Offset)
		out = binary.BigEndian.AppendUint32(out, c.to.Length)
	}
	return out, nil
}

// decodeForwarding is the inverse of encode: it accepts nothing else.
func decodeForwarding(repo ident, old chunk.PackID, plain []byte) (*forwarding, error) {
	if len(plain) < forwardHead {
		return nil, fmt.Errorf("forwarding of %d bytes: %w", len(plain), errEnvelope)
	}
	if !bytes.Equal(plain[:16], repo[:]) || !bytes.Equal(plain[16:48], old[:]) {
		return nil, fmt.Errorf("forwarding of another pack or repository in the place of pack %s: %w", old, errEnvelope)
	}
	packs, chunks := int(binary.BigEndian.Uint16(plain[48:])), int64(binary.BigEndian.Uint32(plain[50:]))
	rest := plain[forwardHead:]
	if chunks > maxForwarded || int64(len(rest)) != 32*int64(packs)+forwardEntry*chunks {
		return nil, fmt.Errorf("forwarding of %d bytes for %d packs and %d chunks: %w", len(plain), packs, chunks, errEnvelope)
	}
	table, rest := rest[:32*packs], rest[32*packs:]
	f := &forwarding{old: old, chunks: make([]movedChunk, 0, chunks)}
	for ; len(rest) > 0; rest = rest[forwardEntry:] {
		n := int(binary.BigEndian.Uint16(rest[21:]))
		if n >= packs {
			return nil, fmt.Errorf("forwarding of pack %s names target %d of %d: %w", old, n, packs, errEnvelope)
		}
		f.chunks = append(f.chunks, movedChunk{
			kind: chunk.Kind(rest[0]), id: chunk.ID(rest[1:21]),
			to: chunk.Location{
				Pack:   chunk.PackID(table[32*n : 32*n+32]),
				Offset: binary.BigEndian.Uint32(rest[23:]), Length: binary.BigEndian.Uint32(rest[27:]),
			},
		})
	}
	// The table has exactly the packs that are used, in order: one plaintext
	// for one forwarding.
	again, err := f.encode(repo)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, plain) {
		return nil, fmt.Errorf("forwarding of pack %s has a wrong table of packs: %w", old, errEnvelope)
	}
	return f, nil
}

// sealForwarding returns the object of a forwarding that a compaction made, under the key
// of a sealing epoch.
func (k *keyring) sealForwarding(epoch int, repo ident, name string, f *forwarding) ([]byte, error) {
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("forwarding: %w", err)
	}
	plain, err := f.encode(repo)
	if err != nil {
		return nil, err
	}
	return k.sealForwardingWith(epoch, nonce, name, plain)
}

func (k *keyring) sealForwardingWith(epoch int, nonce []byte, name string, plain []byte) ([]byte, error) {
	keys, err := k.sealing.at(epoch)
	if err != nil {
		return nil, fmt.Errorf("forwarding: %w", err)
	}
	aead, err := chacha20poly1305.NewX(keys.forwarding[:])
	if err != nil {
		return nil, fmt.Errorf("forwarding: %w", err)
	}
	return k.sealEnvelopeAt(epoch, kindForwarding, name, aead.Seal(slices.Clone(nonce), nonce, plain, []byte(name)))
}

// openForwarding is the inverse of sealForwarding. errEpoch: it is genuine, and of
// a sealing epoch that is not known.
func (k *keyring) openForwarding(repo ident, name string, object []byte) (*forwarding, error) {
	old, _, ok := parseForwardName(name)
	if !ok {
		return nil, fmt.Errorf("%s is not the name of a forwarding: %w", name, errEnvelope)
	}
	e, err := k.authenticate(kindForwarding, name, object)
	if err != nil {
		return nil, err
	}
	payload := e.payload
	keys, err := k.sealing.at(e.epoch)
	if err != nil {
		return nil, fmt.Errorf("forwarding %s: %w", name, err)
	}
	aead, err := chacha20poly1305.NewX(keys.forwarding[:])
	if err != nil {
		return nil, fmt.Errorf("forwarding: %w", err)
	}
	if len(payload) < aead.NonceSize() {
		return nil, fmt.Errorf("forwarding of %d bytes: %w", len(payload), errEnvelope)
	}
	plain, err := aead.Open(nil, payload[:aead.NonceSize()], payload[aead.NonceSize():], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("forwarding %s does not open: %w", name, errEnvelope)
	}
	return decodeForwarding(repo, old, plain)
}
