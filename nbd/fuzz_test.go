package nbd

import (
	"bytes"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// canned is a connection whose other side has already said all it will ever
// say, and does not listen.
type canned struct {
	*bytes.Reader
}

func (canned) Write(p []byte) (int, error)      { return len(p), nil }
func (canned) Close() error                     { return nil }
func (canned) LocalAddr() net.Addr              { return nil }
func (canned) RemoteAddr() net.Addr             { return nil }
func (canned) SetDeadline(time.Time) error      { return nil }
func (canned) SetReadDeadline(time.Time) error  { return nil }
func (canned) SetWriteDeadline(time.Time) error { return nil }

// serveCanned lets a server hear a session to its end.
func serveCanned(t *testing.T, session []byte) {
	t.Helper()
	m := newMemory(1 << 20)
	m.WriteAt([]byte("data"), 300<<10)
	serverOf(t, m.export("disk"), m.export("other")).ServeConn(t.Context(), canned{bytes.NewReader(session)})
	if m.opened.Load() != m.closed.Load() || m.opened.Load() > 1 {
		t.Errorf("opened %d times, closed %d times", m.opened.Load(), m.closed.Load())
	}
}

func FuzzServerHandshake(f *testing.F) {
	session := script(64, false)
	f.Add(session)
	f.Add(session[:300])
	f.Add(script(64, true))
	f.Add(encode(uint32(1), "IHAVEOPT", optExportName, uint32(4), "disk"))
	f.Add(encode(uint32(3), "IHAVEOPT", optSetMetaContext, uint32(1<<20)))
	f.Add(encode(uint32(3), "IHAVEOPT", optGo, uint32(math.MaxUint32)))
	f.Fuzz(serveCanned)
}

func FuzzServerTransmission(f *testing.F) {
	prefix := func(headers uint32) []byte {
		b := encode(uint32(3), "IHAVEOPT", headers, uint32(0))
		data := encode(name("disk"), uint32(2), name(ContextAllocation), name(dirtyName))
		b = append(b, encode("IHAVEOPT", optSetMetaContext, uint32(len(data)), data)...)
		data = encode(name("disk"), uint16(0))
		return append(b, encode("IHAVEOPT", optGo, uint32(len(data)), data)...)
	}
	compact, extended := prefix(optStructuredReply), prefix(optExtendedHeaders)
	session := script(64, false)
	f.Add(session[bytes.Index(session, encode(magicRequest)):], false)
	session = script(64, true)
	f.Add(session[bytes.Index(session, encode(magicExtRequest)):], true)
	for c := range uint16(9) {
		f.Add(encode(magicRequest, cmdFlagFUA, c, uint64(7), uint64(4096), uint32(8192), make([]byte, 8192)), false)
		f.Add(encode(magicRequest, uint16(0xffff), c, uint64(7), uint64(math.MaxUint64), uint32(math.MaxUint32)), false)
		f.Add(encode(magicExtRequest, cmdFlagPayloadLen, c, uint64(7), uint64(4096), uint64(16), uint64(8192), uint32(2), uint32(1)), true)
		f.Add(encode(magicExtRequest, cmdFlagFUA, c, uint64(7), uint64(4096), uint64(math.MaxInt64)), true)
		f.Add(encode(magicExtRequest, uint16(0xffff), c, uint64(7), uint64(math.MaxUint64), uint64(math.MaxUint64)), true)
	}
	f.Fuzz(func(t *testing.T, requests []byte, long bool) {
		session := bytes.Clone(compact)
		if long {
			session = bytes.Clone(extended)
		}
		serveCanned(t, append(session, requests...))
	})
}

func FuzzClientHandshake(f *testing.F) {
	reply := func(opt, rep uint32, parts ...any) []byte {
		data := encode(parts...)
		return encode(magicOptReply, opt, rep, uint32(len(data)), data)
	}
	hello := encode("NBDMAGIC", "IHAVEOPT", uint16(3))
	f.Add(encode(hello,
		reply(optExtendedHeaders, repErrUnsup), reply(optStructuredReply, repAck),
		reply(optSetMetaContext, repMetaContext, uint32(1), ContextAllocation), reply(optSetMetaContext, repAck),
		reply(optGo, repInfo, infoExport, uint64(1<<20), rwFlags), reply(optGo, repInfo, infoBlockSize, uint32(512), uint32(4096), uint32(1<<20)), reply(optGo, repAck)))
	f.Add(encode(hello, reply(optExtendedHeaders, repErrUnsup), reply(optStructuredReply, repErrUnsup), reply(optGo, repErrUnsup, "no"), uint64(512), rwFlags))
	f.Add(encode(hello, reply(optExtendedHeaders, repAck),
		reply(optSetMetaContext, repMetaContext, uint32(1), ContextAllocation), reply(optSetMetaContext, repAck),
		reply(optGo, repInfo, infoExport, uint64(1<<50), rwFlags|flagSendFastZero), reply(optGo, repAck)))
	f.Add(encode(hello, reply(optExtendedHeaders, repErrTLSReqd, "no")))
	f.Add(encode(hello, reply(optExtendedHeaders, repAck),
		reply(optListMetaContext, repMetaContext, uint32(0), dirtyName), reply(optListMetaContext, repAck),
		reply(optInfo, repInfo, infoExport, uint64(1<<50), rwFlags), reply(optInfo, repInfo, infoDescription, "a disk"), reply(optInfo, repAck)))
	f.Add(encode("NBDMAGIC", "IHAVEOPT", uint16(0), uint64(512), rwFlags, make([]byte, exportNamePadding)))
	f.Add(encode(hello, reply(optList, repServer, name("a"), "b"), reply(optList, repAck)))
	f.Fuzz(func(t *testing.T, answers []byte) {
		greeted := func() *greeter {
			g := &greeter{in: input{nc: canned{bytes.NewReader(answers)}}}
			if g.begin(t.Context(), nil) != nil {
				return nil
			}
			return g
		}
		g := greeted()
		if g == nil {
			return
		}
		if s, err := g.choose("disk", []string{ContextAllocation, dirtyName}); err == nil {
			if s.size < 0 || !s.blocks.valid() || s.blocks.Maximum > maxPayload || len(s.contexts) > 2 || len(s.contexts) > 0 && s.framing == simpleReplies {
				t.Errorf("negotiated %+v", s)
			}
		}
		if found, err := greeted().list(); err == nil {
			for _, e := range found {
				if len(e.Name) > maxName || len(e.Description) > 3*maxText {
					t.Errorf("listed %q", e)
				}
			}
		}
		if s, offered, err := greeted().probe("disk"); err == nil {
			d := s.describeTo(Details{Contexts: offered})
			if d.Size < 0 || !d.BlockSizes.valid() || len(d.Contexts) > maxOffered || d.Extended && !d.Structured ||
				len(d.Description) > 3*maxText || len(d.Name) > 3*maxText {
				t.Errorf("probed %+v", d)
			}
		}
	})
}

// room has place for some extents.
func room(n int64) *atomic.Int64 {
	r := new(atomic.Int64)
	r.Store(n)
	return r
}

func FuzzClientTransmission(f *testing.F) {
	chunk := func(flags, kind uint16, cookie uint64, parts ...any) []byte {
		data := encode(parts...)
		return encode(magicStructured, flags, kind, cookie, uint32(len(data)), data)
	}
	f.Add(encode(
		chunk(0, chunkOffsetData, 1, uint64(8192), make([]byte, 1000)), chunk(1, chunkOffsetHole, 1, uint64(9192), uint32(3096)),
		chunk(1, chunkBlockStatus, 2, uint32(5), uint32(4096), uint32(3), uint32(1<<19), uint32(0)),
		magicSimple, ENOSPC, uint64(3)), uint8(structuredReplies))
	f.Add(encode(chunk(1, chunkErrorOffset, 1, EIO, uint16(3), "bad", uint64(8192)), chunk(1, chunkNone, 3)), uint8(structuredReplies))
	f.Add(encode(
		extChunk(0, chunkOffsetData, 1, 8192, uint64(8192), make([]byte, 1000)), extChunk(1, chunkOffsetHole, 1, 8192, uint64(9192), uint32(3096)),
		extChunk(0, chunkStatusExt, 2, 0, uint32(6), uint32(0), uint64(math.MaxUint64), uint64(1)),
		extChunk(1, chunkStatusExt, 2, 0, uint32(5), uint32(2), uint64(4096), uint64(3), uint64(1<<63), uint64(0)),
		extChunk(1, chunkNone, 3, 0)), uint8(extendedHeaders))
	f.Add(encode(extChunk(1, chunkErrorOffset, 1, 8192, ENOTSUP, uint16(3), "bad", uint64(8192)), extChunk(1, chunkNone, 3, 0)), uint8(extendedHeaders))
	f.Add(encode(extChunk(1, chunkStatusExt, 2, 0, uint32(5), uint32(1), uint64(math.MaxUint64), uint64(math.MaxUint64))), uint8(extendedHeaders))
	f.Add(encode(magicSimple, uint32(0), uint64(1), make([]byte, 4096), magicSimple, uint32(0), uint64(3)), uint8(simpleReplies))
	f.Fuzz(func(t *testing.T, replies []byte, kind uint8) {
		s := &session{size: 1 << 20, framing: framing(kind % 3), contexts: []selectedContext{{5, ContextAllocation}, {6, dirtyName}}}
		nc := canned{bytes.NewReader(replies)}
		in := input{nc: nc}
		in.resize(clientBuffer)
		l := newLink(nc, in, s, new(ledger))
		calls := []*call{
			{command: cmdRead, off: 8192, n: 4096, p: make([]byte, 4096)},
			{command: cmdBlockStatus, off: 0, n: 1 << 20, context: ContextAllocation, room: room(100)},
			{command: cmdFlush},
		}
		for _, c := range calls {
			c.finished, c.released = make(chan struct{}), make(chan struct{})
			l.slots <- struct{}{}
			if _, err := l.register(c); err != nil {
				t.Fatal(err)
			}
		}
		l.receive()
		for _, c := range calls {
			<-c.finished
		}
		if c := calls[0]; c.err == nil && s.framing != simpleReplies && !c.arrived.whole(4096) {
			t.Error("a read came back with parts missing")
		}
		if c := calls[1]; c.err == nil && (len(c.extents) == 0 || c.extents[0].Offset != 0 || blockmap.Total(c.extents) != c.extents[len(c.extents)-1].End() || blockmap.Total(c.extents) > s.size) {
			t.Errorf("status %v", c.extents)
		}
	})
}

// What is decoded as a request of either kind encodes to the same bytes.
func FuzzOptionData(f *testing.F) {
	f.Add(encode(name("disk"), uint16(2), infoName, infoBlockSize))
	f.Add(encode(name("disk"), uint32(2), name("base:"), name("")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, ok := parseInfoRequest(data); ok && !bytes.Equal(r.append(nil), data) {
			t.Errorf("%x became %x", data, r.append(nil))
		}
		if r, ok := parseMetaRequest(data); ok && !bytes.Equal(r.append(nil), data) {
			t.Errorf("%x became %x", data, r.append(nil))
		}
	})
}
