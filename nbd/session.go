package nbd

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// BlockSizes are the sizes that a server asks its clients to keep to. Offsets
// and lengths must be multiples of Minimum; one request carries at most Maximum.
type BlockSizes struct{ Minimum, Preferred, Maximum int64 }

// framing is how requests and replies look on a connection. Each can do what those
// before it can.
type framing int

const (
	simpleReplies framing = iota
	structuredReplies
	extendedHeaders
)

// session is what was negotiated on a connection, as the client sees it.
type session struct {
	size     int64
	flags    uint16
	framing  framing
	blocks   BlockSizes
	contexts []selectedContext

	name, description string // as the server tells them, if it does
}

type selectedContext struct {
	id   uint32
	name string
}

// same reports whether two connections lead to what looks like one export.
func (s *session) same(t *session) bool {
	return s.size == t.size && s.flags == t.flags && s.framing == t.framing && s.blocks == t.blocks &&
		slices.EqualFunc(s.contexts, t.contexts, func(a, b selectedContext) bool { return a.name == b.name })
}

// replaces reports whether what old had can go on with s: the same size, as writable
// as it was, and everything that the server of old could do. It may do more, as one
// does that was upgraded.
func (s *session) replaces(old *session) bool {
	const needed = ^flagRotational
	return s.size == old.size && (s.flags^old.flags)&flagReadOnly == 0 && old.flags&^s.flags&needed == 0 &&
		s.framing >= old.framing && s.blocks.Minimum <= old.blocks.Minimum && s.blocks.Maximum >= old.blocks.Maximum &&
		!slices.ContainsFunc(old.contexts, func(c selectedContext) bool { return !s.has(c.name) })
}

func newSession() *session {
	return &session{blocks: BlockSizes{Minimum: 1, Preferred: preferredBlock, Maximum: defaultPayload}}
}

// info takes in one INFO reply.
func (s *session) info(data []byte, sized *bool) error {
	c := cursor{b: data}
	switch c.u16() {
	case infoExport:
		size, flags := c.u64(), c.u16()
		if !c.end() {
			return errors.New("the server sent a malformed description of the export")
		}
		*sized = true
		return s.describe(size, flags)
	case infoBlockSize:
		b := BlockSizes{int64(c.u32()), int64(c.u32()), int64(c.u32())}
		if !c.end() || !b.valid() {
			return fmt.Errorf("the server sent the impossible block sizes %d, %d, %d", b.Minimum, b.Preferred, b.Maximum)
		}
		b.Maximum = min(b.Maximum, maxPayload)
		b.Maximum -= b.Maximum % b.Minimum
		s.blocks = b
	case infoName:
		s.name = clean(string(c.b))
	case infoDescription:
		s.description = clean(string(c.b))
	}
	return nil // the others are of no use to us
}

func (s *session) describe(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("the server says that the export has %d bytes", size)
	}
	s.size, s.flags = int64(size), flags
	if flags&flagHasFlags == 0 {
		s.flags = 0
	}
	return nil
}

func (b BlockSizes) valid() bool {
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	return power(b.Minimum) && b.Minimum <= 64<<10 && power(b.Preferred) && b.Preferred >= b.Minimum &&
		b.Maximum >= b.Minimum
}

// context returns the name of a context that was negotiated.
func (s *session) context(id uint32) (name string, ok bool) {
	for _, c := range s.contexts {
		if c.id == id {
			return c.name, true
		}
	}
	return "", false
}

// has reports whether a context was negotiated.
func (s *session) has(name string) bool {
	return slices.ContainsFunc(s.contexts, func(c selectedContext) bool { return c.name == name })
}

// id returns what the server calls a context that was negotiated.
func (s *session) id(name string) uint32 {
	i := slices.IndexFunc(s.contexts, func(c selectedContext) bool { return c.name == name })
	return s.contexts[i].id
}

// filters reports whether the server can be asked about one context alone, and
// there is another that it would tell about.
func (s *session) filters() bool {
	return s.flags&flagStatusFilter != 0 && len(s.contexts) > 1
}
