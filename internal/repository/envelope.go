package repository

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"
)

// The envelope of control objects; see FORMAT.md.
const (
	envelopeMagic   = "CAIRNCTL"
	envelopeVersion = 1
	// sealedVersion is that of what a rotated repository seals under another
	// master key than its first: the number of the sealing epoch is in front of
	// the payload.
	sealedVersion  = 2
	envelopeHeader = 8 + 2 + 2 + 4
	envelopeTag    = 32
	// maxControl bounds what is read of a control object. A condemned list of
	// a million packs has 33 MiB.
	maxControl = 48 << 20
)

// kind says what a control object is. It is authenticated with the payload.
type kind uint16

const (
	kindStore kind = iota + 1
	kindKey
	kindMembers
	kindOpen
	kindVerdict
	kindCertificate
	kindTombstone
	kindPurged
	kindOwed
	kindCondemned
	kindDone
	kindRoot
	kindForwarding
	kindChange
	kindRemovedKey
	kindDamage
	kindCapabilities
)

// errEnvelope says that an object is not one that this repository wrote under
// this name.
var errEnvelope = errors.New("object is damaged or foreign")

// envelope is a control object taken apart, not authenticated yet.
type envelope struct {
	kind    kind
	epoch   int // sealing epoch of the payload
	payload []byte
}

// sealEnvelope returns the object of a payload. The name is authenticated too,
// so that nobody can show one object in the place of another.
func (k *keyring) sealEnvelope(kd kind, name string, payload []byte) ([]byte, error) {
	return k.sealEnvelopeAt(0, kd, name, payload)
}

// sealEnvelopeAt is sealEnvelope for what is sealed under the master key of a
// sealing epoch.
func (k *keyring) sealEnvelopeAt(epoch int, kd kind, name string, payload []byte) ([]byte, error) {
	version := uint16(envelopeVersion)
	if epoch > 0 {
		version = sealedVersion
		payload = append(binary.BigEndian.AppendUint16(nil, uint16(epoch)), payload...) //nolint:gosec // bounded by maxEpochs
	}
	if len(payload) > maxControl-envelopeHeader-envelopeTag {
		return nil, fmt.Errorf("control object %s has %d bytes: %w", name, len(payload), ErrInvalid)
	}
	out := make([]byte, 0, envelopeHeader+len(payload)+envelopeTag)
	out = append(out, envelopeMagic...)
	out = binary.BigEndian.AppendUint16(out, version)
	out = binary.BigEndian.AppendUint16(out, uint16(kd))
	out = binary.BigEndian.AppendUint32(out, uint32(len(payload))) //nolint:gosec // bounded above
	out = append(out, payload...)
	tag, err := k.tag(name, out)
	if err != nil {
		return nil, err
	}
	return append(out, tag...), nil
}

// formatError is the version of an object that this program does not know.
// Nothing proves that the repository has been upgraded: a damaged object may
// say so too.
type formatError uint16

func (e formatError) Error() string {
	return fmt.Sprintf("control object of format %d: %v, or the store is damaged: upgrade cairn or leave the store out", uint16(e), ErrVersion)
}

// Is makes it an ErrVersion.
func (formatError) Is(target error) bool { return target == ErrVersion }

// unproved reports whether err is a claim of a newer version that nothing
// authenticates.
func unproved(err error) bool {
	_, ok := errors.AsType[formatError](err)
	return ok
}

// parseEnvelope takes an object apart without authenticating it: for what has
// to be read before there is a key.
func parseEnvelope(object []byte) (envelope, error) {
	if len(object) < envelopeHeader+envelopeTag || string(object[:8]) != envelopeMagic {
		return envelope{}, fmt.Errorf("no control object: %w", errEnvelope)
	}
	version := binary.BigEndian.Uint16(object[8:])
	if version != envelopeVersion && version != sealedVersion {
		return envelope{}, formatError(version)
	}
	n := binary.BigEndian.Uint32(object[12:])
	if int64(n) != int64(len(object)-envelopeHeader-envelopeTag) {
		return envelope{}, fmt.Errorf("control object of %d bytes says %d: %w", len(object), n, errEnvelope)
	}
	e := envelope{
		kind:    kind(binary.BigEndian.Uint16(object[10:])),
		payload: object[envelopeHeader : envelopeHeader+int(n)],
	}
	if version == envelopeVersion {
		return e, nil
	}
	if e.kind != kindKey && e.kind != kindRoot && e.kind != kindForwarding {
		return envelope{}, formatError(version)
	}
	if len(e.payload) < 2 {
		return envelope{}, fmt.Errorf("control object without its sealing epoch: %w", errEnvelope)
	}
	e.epoch, e.payload = int(binary.BigEndian.Uint16(e.payload)), e.payload[2:]
	if e.epoch == 0 || e.epoch >= maxEpochs {
		return envelope{}, fmt.Errorf("control object of sealing epoch %d: %w", e.epoch, errEnvelope)
	}
	return e, nil
}

// openEnvelope returns the authenticated payload of an object.
func (k *keyring) openEnvelope(kd kind, name string, object []byte) ([]byte, error) {
	e, err := k.authenticate(kd, name, object)
	return e.payload, err
}

// authenticate is openEnvelope that also says what sealing epoch it is of.
func (k *keyring) authenticate(kd kind, name string, object []byte) (envelope, error) {
	e, err := parseEnvelope(object)
	if err != nil {
		return envelope{}, err
	}
	body := object[:len(object)-envelopeTag]
	tag, err := k.tag(name, body)
	if err != nil {
		return envelope{}, err
	}
	if subtle.ConstantTimeCompare(tag, object[len(body):]) != 1 {
		return envelope{}, fmt.Errorf("authentication of %s failed: %w", name, errEnvelope)
	}
	if e.kind != kd {
		return envelope{}, fmt.Errorf("%s has kind %d, want %d: %w", name, e.kind, kd, errEnvelope)
	}
	return e, nil
}

func (k *keyring) tag(name string, body []byte) ([]byte, error) {
	h, err := blake3.NewKeyed(k.control[:])
	if err != nil {
		return nil, fmt.Errorf("authenticate %s: %w", name, err)
	}
	// The length in front keeps (name, body) unambiguous.
	var n [2]byte
	binary.BigEndian.PutUint16(n[:], uint16(len(name))) //nolint:gosec // names have at most 512 bytes
	_, _ = h.Write(n[:])                                // a hash never fails
	_, _ = h.WriteString(name)
	_, _ = h.Write(body)
	return h.Sum(nil)[:envelopeTag], nil
}

// token returns a name that tells an outsider nothing about its parts.
func (k *keyring) token(purpose string, parts ...string) (string, error) {
	h, err := blake3.NewKeyed(k.tokens[:])
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	for _, p := range append([]string{purpose}, parts...) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		_, _ = h.Write(n[:])
		_, _ = h.WriteString(p)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// decodeJSON decodes exactly one value with no unknown field: what a newer
// version added is announced by its version, not guessed at.
func decodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", errEnvelope, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one value", errEnvelope)
	}
	return nil
}
