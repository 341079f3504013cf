package nbd

import (
	"encoding/binary"
	"slices"
	"strings"
)

// cursor takes fields off the front of an option's or reply's data. After a
// field that is not there everything reads as zero and bad is set.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) u16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// name takes a length and as many bytes, at most maxName.
func (c *cursor) name() string {
	n := c.u32()
	if n > maxName {
		c.bad, c.b = true, nil
		return ""
	}
	return string(c.bytes(n))
}

// end reports whether all fields were there and nothing is left over.
func (c *cursor) end() bool { return !c.bad && len(c.b) == 0 }

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	export string
	infos  []uint16
}

func parseInfoRequest(data []byte) (infoRequest, bool) {
	c := cursor{b: data}
	r := infoRequest{export: c.name()}
	for range c.u16() {
		i := c.u16()
		if c.bad {
			break
		}
		r.infos = append(r.infos, i)
	}
	return r, c.end()
}

func (r infoRequest) append(b []byte) []byte {
	b = appendName(b, r.export)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.infos))) //nolint:gosec // ours are few
	for _, i := range r.infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	export  string
	queries []string
}

func parseMetaRequest(data []byte) (metaRequest, bool) {
	c := cursor{b: data}
	r := metaRequest{export: c.name()}
	for range c.u32() {
		q := c.name()
		if c.bad {
			break
		}
		r.queries = append(r.queries, q)
	}
	return r, c.end()
}

func (r metaRequest) append(b []byte) []byte {
	b = appendName(b, r.export)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.queries))) //nolint:gosec // ours are few
	for _, q := range r.queries {
		b = appendName(b, q)
	}
	return b
}

// list returns those of the offered contexts that LIST_META_CONTEXT asked for.
// No query at all means every context; a namespace ("base:", "qemu:") or a
// family in it ("qemu:dirty-bitmap:") means all that are in it.
func (r metaRequest) list(offered []string) []string {
	if len(r.queries) == 0 {
		return offered
	}
	var found []string
	for _, name := range offered {
		if slices.ContainsFunc(r.queries, func(q string) bool {
			return q == name || strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		}) {
			found = append(found, name)
		}
	}
	return found
}

// choose returns those of the offered contexts that SET_META_CONTEXT named in
// full, each once, in the order of the queries.
func (r metaRequest) choose(offered []string) []string {
	var found []string
	for _, q := range r.queries {
		if slices.Contains(offered, q) && !slices.Contains(found, q) {
			found = append(found, q)
		}
	}
	return found
}

func appendName(b []byte, name string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(name))) //nolint:gosec // names are at most maxName
	return append(b, name...)
}

// clipText cuts a text to what the protocol allows, between characters.
func clipText(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "")
}
