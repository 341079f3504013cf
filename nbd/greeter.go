package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"unicode"
)

const (
	// clientBuffer takes replies' headers and small payloads.
	clientBuffer = 32 << 10
	// maxListed bounds what a server may answer to one option.
	maxListed = 16 << 10
)

// BlockSizes are the sizes that a server asks its clients to keep to. Offsets
// and lengths must be multiples of Minimum; one request carries at most Maximum.
type BlockSizes struct{ Minimum, Preferred, Maximum int64 }

// session is what was negotiated on a connection, as the client sees it.
type session struct {
	size       int64
	flags      uint16
	structured bool
	blocks     BlockSizes
	contexts   []selectedContext
}

type selectedContext struct {
	id   uint32
	name string
}

// same reports whether two connections lead to what looks like one export.
func (s *session) same(t *session) bool {
	return s.size == t.size && s.flags == t.flags && s.structured == t.structured && s.blocks == t.blocks &&
		slices.EqualFunc(s.contexts, t.contexts, func(a, b selectedContext) bool { return a.name == b.name })
}

// greeter is the client's side of the handshake.
type greeter struct {
	in       input
	fixed    bool
	noZeroes bool
}

// optionError is a server's refusal of an option.
type optionError struct {
	rep  uint32
	text string
}

var refusals = map[uint32]string{
	repErrUnsup:      "the server does not know the option",
	repErrPolicy:     "the server refuses it",
	repErrInvalid:    "the server calls the option invalid",
	repErrPlatform:   "the server cannot do it on its platform",
	repErrTLSReqd:    "the server requires TLS, which this client does not speak",
	repErrUnknown:    "the server has no export of that name",
	repErrShutdown:   "the server is shutting down",
	repErrBlockSize:  "the server requires its block sizes to be kept",
	repErrTooBig:     "the server calls the option too big",
	repErrExtHdrReqd: "the server requires extended headers, which this client does not speak",
}

func (e *optionError) Error() string {
	s, ok := refusals[e.rep]
	if !ok {
		s = fmt.Sprintf("the server answered %#x", e.rep)
	}
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// Is lets callers ask with errors.Is for what went wrong.
func (e *optionError) Is(target error) bool {
	switch e.rep {
	case repErrUnknown:
		return target == fs.ErrNotExist
	case repErrPolicy:
		return target == fs.ErrPermission
	case repErrUnsup:
		return target == errors.ErrUnsupported
	default:
		return false
	}
}

// greet reads the server's greeting and answers it.
func (g *greeter) greet() error {
	g.in.resize(clientBuffer)
	if err := g.in.fill(16, clientBuffer); err != nil {
		return midway(err)
	}
	c := cursor{b: g.in.take(16)}
	if magic := c.u64(); magic != magicNBD {
		return fmt.Errorf("this is not an NBD server: it began with %#x", magic)
	}
	switch magic := c.u64(); magic {
	case magicOption:
	case magicOldstyle:
		return errors.New("the server speaks the oldstyle protocol, which has no export names: upgrade it")
	default:
		return fmt.Errorf("the server sent the handshake magic %#x", magic)
	}
	if err := g.in.fill(2, clientBuffer); err != nil {
		return midway(err)
	}
	flags := binary.BigEndian.Uint16(g.in.take(2)) & (flagFixedNewstyle | flagNoZeroes)
	g.fixed, g.noZeroes = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	_, err := g.in.nc.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)))
	return err
}

// choose negotiates everything that this client can use, and the export.
func (g *greeter) choose(export string, contexts []string) (*session, error) {
	if err := g.greet(); err != nil {
		return nil, err
	}
	s := &session{blocks: BlockSizes{Minimum: 1, Preferred: preferredBlock, Maximum: defaultPayload}}
	if !g.fixed {
		return s, g.exportName(s, export)
	}
	// STARTTLS and EXTENDED_HEADERS go here, in this order, before anything else.
	err := g.ask(optStructuredReply, nil, func(rep uint32, _ []byte) error {
		return fmt.Errorf("the server answered STRUCTURED_REPLY with %#x", rep)
	})
	if err != nil && refused(err) == nil {
		return nil, err
	}
	s.structured = err == nil
	if s.structured && len(contexts) > 0 {
		if err = g.setContexts(s, export, contexts); err != nil {
			return nil, err
		}
	}
	r := infoRequest{export: export, infos: []uint16{infoBlockSize}}
	var sized bool
	err = g.ask(optGo, r.append(nil), func(rep uint32, data []byte) error {
		if rep != repInfo {
			return fmt.Errorf("the server answered GO with %#x", rep)
		}
		return s.info(data, &sized)
	})
	if e := refused(err); e != nil && e.rep == repErrUnsup {
		return s, g.exportName(s, export)
	}
	if err == nil && !sized {
		err = errors.New("the server accepted the export without telling its size")
	}
	return s, err
}

// refused returns the refusal in err, or nil.
func refused(err error) *optionError {
	e, _ := errors.AsType[*optionError](err)
	return e
}

// setContexts selects metadata contexts. A server that has none is no error.
func (g *greeter) setContexts(s *session, export string, contexts []string) error {
	r := metaRequest{export: export, queries: contexts}
	data := r.append(nil)
	if len(data) > maxOptionData {
		return fmt.Errorf("the names of %d metadata contexts are longer than the %d bytes of an option: ask for fewer",
			len(contexts), maxOptionData)
	}
	err := g.ask(optSetMetaContext, data, func(rep uint32, data []byte) error {
		if rep != repMetaContext {
			return fmt.Errorf("the server answered SET_META_CONTEXT with %#x", rep)
		}
		c := cursor{b: data}
		sel := selectedContext{id: c.u32(), name: string(c.b)}
		if c.bad || !slices.Contains(contexts, sel.name) || slices.ContainsFunc(s.contexts, func(o selectedContext) bool {
			return o.id == sel.id || o.name == sel.name
		}) {
			return fmt.Errorf("the server selected the metadata context %q, which nobody asked for", clean(sel.name))
		}
		s.contexts = append(s.contexts, sel)
		return nil
	})
	if refused(err) == nil {
		return err
	}
	s.contexts = nil
	return nil
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

// exportName asks for the export in the way that every server knows. Its only
// refusal is to hang up.
func (g *greeter) exportName(s *session, export string) error {
	if err := g.option(optExportName, []byte(export)); err != nil {
		return err
	}
	if err := g.in.fill(10, clientBuffer); err != nil {
		return fmt.Errorf("the server hung up, most likely because it has no export of that name: %w", midway(err))
	}
	c := cursor{b: g.in.take(10)}
	if err := s.describe(c.u64(), c.u16()); err != nil {
		return err
	}
	if g.noZeroes {
		return nil
	}
	return g.in.discard(exportNamePadding)
}

// list asks for the names of all exports.
func (g *greeter) list() ([]ExportInfo, error) {
	if err := g.greet(); err != nil {
		return nil, err
	}
	if !g.fixed {
		return nil, errors.New("the server cannot list its exports")
	}
	var found []ExportInfo
	err := g.ask(optList, nil, func(rep uint32, data []byte) error {
		if rep != repServer {
			return fmt.Errorf("the server answered LIST with %#x", rep)
		}
		c := cursor{b: data}
		e := ExportInfo{Name: c.name(), Description: clean(string(c.b))}
		if c.bad {
			return errors.New("the server listed a malformed name")
		}
		found = append(found, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	_ = g.option(optAbort, nil) // goodbye is only polite
	return found, nil
}

// ask sends an option and passes each reply to fn, up to the acknowledgement.
// A refusal is an *optionError; after any other error the connection is of no
// more use.
func (g *greeter) ask(opt uint32, data []byte, fn func(rep uint32, data []byte) error) error {
	if err := g.option(opt, data); err != nil {
		return err
	}
	for range maxListed {
		rep, data, err := g.reply(opt)
		switch {
		case err != nil:
			return err
		case rep == repAck:
			if len(data) != 0 {
				return errors.New("the server sent data with an acknowledgement")
			}
			return nil
		case rep&repError != 0:
			return &optionError{rep: rep, text: clean(string(data))}
		}
		if err := fn(rep, data); err != nil {
			return err
		}
	}
	return fmt.Errorf("the server answered option %d more than %d times", opt, maxListed)
}

func (g *greeter) option(opt uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data))) //nolint:gosec // at most maxOptionData
	_, err := g.in.nc.Write(append(b, data...))
	return err
}

// reply reads one reply to opt.
func (g *greeter) reply(opt uint32) (rep uint32, data []byte, err error) {
	if err := g.in.fill(optReplyHeadSize, clientBuffer); err != nil {
		return 0, nil, midway(err)
	}
	c := cursor{b: g.in.take(optReplyHeadSize)}
	magic, to, rep, length := c.u64(), c.u32(), c.u32(), c.u32()
	switch {
	case magic != magicOptReply:
		return 0, nil, fmt.Errorf("the server sent the reply magic %#x", magic)
	case to != opt:
		return 0, nil, fmt.Errorf("the server answered option %d, not %d", to, opt)
	case length > maxOptionData:
		return 0, nil, fmt.Errorf("the server announced a reply of %d bytes", length)
	}
	data = make([]byte, length)
	return rep, data, g.in.readFull(data)
}

// clean makes a text from the other side fit to be shown.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, clipText(s))
}
