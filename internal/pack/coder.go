package pack

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/reedsolomon"
	"github.com/zeebo/blake3"

	"github.com/cairnbackup/cairn/internal/chunk"
)

const (
	shardMagic   = "CAIRNSHD"
	shardVersion = 1

	// knownLengths bounds what a Coder remembers about packs that it read in
	// part: 40 bytes each.
	knownLengths = 4096
)

// Coder turns the containers of one repository and geometry into shards, and
// shards into containers. Its methods may be called concurrently; it starts
// goroutines only to fetch, and none outlives the call.
type Coder struct {
	g          Geometry
	repository [16]byte
	rs         reedsolomon.Encoder // nil without parity
	cellTags   sync.Pool           // *tagger
	headerTags sync.Pool           // *tagger

	mu      sync.Mutex
	lengths map[chunk.PackID]int64 // of containers, as their authenticated headers say
}

// NewCoder makes a Coder. The repair key authenticates shards: whoever has it
// can rebuild shards without being able to read what is in them.
func NewCoder(g Geometry, repository [16]byte, repairKey [32]byte) (*Coder, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	c := &Coder{g: g, repository: repository, lengths: make(map[chunk.PackID]int64)}
	for purpose, pool := range map[string]*sync.Pool{"cell": &c.cellTags, "header": &c.headerTags} {
		key, err := hkdf.Key(sha256.New, repairKey[:], repository[:], fmt.Sprintf("cairn shard %d %s", shardVersion, purpose), 32)
		if err != nil {
			return nil, fmt.Errorf("derive the %s key of shards: %w", purpose, err)
		}
		first, err := blake3.NewKeyed(key)
		if err != nil {
			return nil, fmt.Errorf("key the %s hash of shards: %w", purpose, err)
		}
		pool.New = func() any { return &tagger{h: first.Clone()} }
	}
	if g.Parity > 0 {
		// One goroutine: whoever encodes is one worker of as many as there
		// are cores.
		rs, err := reedsolomon.New(g.Data, g.Parity, reedsolomon.WithMaxGoroutines(1))
		if err != nil {
			return nil, fmt.Errorf("geometry %s: %w", g, err)
		}
		c.rs = rs
	}
	return c, nil
}

// Geometry returns the geometry of the shards.
func (c *Coder) Geometry() Geometry { return c.g }

// tagger makes the tags of cells and headers without allocating.
type tagger struct {
	h      *blake3.Hasher
	suffix [32 + 1 + 7]byte
	sum    [32]byte
}

func borrow(pool *sync.Pool) *tagger {
	t, ok := pool.Get().(*tagger)
	if !ok {
		panic("pack: tagger pool without New") // cannot be: NewCoder sets it
	}
	return t
}

// tag returns the tag of payload at a place of a shard; it is valid until the
// next call.
func (t *tagger) tag(payload []byte, id chunk.PackID, shard int, cell int64) []byte {
	copy(t.suffix[:], id[:])
	t.suffix[32] = byte(shard)                              //nolint:gosec // below MaxShards
	binary.BigEndian.PutUint32(t.suffix[36:], uint32(cell)) //nolint:gosec // bounded by MaxContainer
	t.h.Reset()
	_, _ = t.h.Write(payload) // documented never to fail
	_, _ = t.h.Write(t.suffix[:])
	return t.h.Sum(t.sum[:0])[:tagSize]
}

// appendHeader appends the header of a shard.
func (c *Coder) appendHeader(b []byte, id chunk.PackID, shard int, length int64) []byte {
	start := len(b)
	b = append(b, shardMagic...)
	b = binary.BigEndian.AppendUint16(b, shardVersion)
	b = append(b, byte(c.g.Data), byte(c.g.Parity), byte(shard), unitLog, cellLog, 0) //nolint:gosec // at most MaxShards
	b = append(b, c.repository[:]...)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(length)) //nolint:gosec // not negative
	t := borrow(&c.headerTags)
	b = append(b, t.tag(b[start:], id, shard, 0)...)
	c.headerTags.Put(t)
	b = append(b, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

const (
	unitLog = 17
	cellLog = 13
)

// decodeHeader checks the header of a shard and returns the length of the
// container.
func (c *Coder) decodeHeader(b []byte, id chunk.PackID, shard int) (int64, error) {
	switch {
	case len(b) < headerSize || string(b[:8]) != shardMagic:
		return 0, fmt.Errorf("not a shard: %w", ErrCorrupt)
	case crc32.Checksum(b[:92], castagnoli) != binary.BigEndian.Uint32(b[92:]):
		return 0, fmt.Errorf("checksum of the header: %w", ErrCorrupt)
	case binary.BigEndian.Uint16(b[8:]) != shardVersion:
		return 0, fmt.Errorf("shard of version %d: %w", binary.BigEndian.Uint16(b[8:]), ErrVersion)
	}
	length := binary.BigEndian.Uint64(b[64:])
	if length == 0 || length > MaxContainer {
		return 0, fmt.Errorf("shard of a container of %d bytes: %w", length, ErrCorrupt)
	}
	// The header is a function of what it must say, so that comparing is
	// checking every field.
	want := c.appendHeader(make([]byte, 0, headerSize), id, shard, int64(length))
	if string(want) != string(b[:headerSize]) {
		return 0, fmt.Errorf("%s: %w", c.headerDifference(want, b), ErrCorrupt)
	}
	c.remember(id, int64(length))
	return int64(length), nil
}

// headerDifference names the first field in which a header is not as it
// should be.
func (c *Coder) headerDifference(want, got []byte) string {
	for _, f := range []struct {
		end  int
		what string
	}{
		{12, fmt.Sprintf("shard of geometry %d+%d", got[10], got[11])},
		{13, fmt.Sprintf("shard %d", got[12])},
		{16, "shard of another layout"},
		{32, "shard of another repository"},
		{64, "shard of another pack"},
	} {
		if string(want[:f.end]) != string(got[:f.end]) {
			return f.what
		}
	}
	return "forged header"
}

func (c *Coder) remember(id chunk.PackID, length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lengths) >= knownLengths {
		for other := range c.lengths { // any one
			delete(c.lengths, other)
			break
		}
	}
	c.lengths[id] = length
}

func (c *Coder) known(id chunk.PackID) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	length, ok := c.lengths[id]
	return length, ok
}

var errContainer = errors.New("container is empty or longer than MaxContainer")
