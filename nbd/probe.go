package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// maxOffered bounds the contexts that Probe collects.
const maxOffered = 1024

// Details describe an export that nobody has opened.
type Details struct {
	Name        string // the server's own, if it told one
	Description string
	Size        int64
	ReadOnly    bool
	CanFlush    bool
	CanFUA      bool
	CanTrim     bool
	CanZero     bool
	CanFastZero bool
	// CanMultiConn is the server's promise that a flush covers all connections.
	CanMultiConn bool
	Rotational   bool
	BlockSizes   BlockSizes
	// Contexts are the names of all metadata contexts that the server offers, in
	// order; those with control characters are left out.
	Contexts []string
	// TLS, Structured and Extended tell how the server can be talked to:
	// encrypted, with structured replies, with 64-bit headers.
	TLS, Structured, Extended bool
}

// DirtyBitmaps returns the names of the dirty bitmaps among the contexts, without
// ContextDirtyBitmap in front.
func (d Details) DirtyBitmaps() []string {
	var names []string
	for _, c := range d.Contexts {
		if name, ok := strings.CutPrefix(c, ContextDirtyBitmap); ok {
			names = append(names, name)
		}
	}
	return names
}

// Probe asks the server at uri about an export without opening it, within
// o.DialTimeout. A server so old that it cannot describe an export has to open
// it; it is left at once.
func Probe(ctx context.Context, uri string, o ClientOptions) (Details, error) {
	e, err := parseURI(uri)
	if err != nil {
		return Details{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.dialTimeout())
	defer cancel()
	var d Details
	err = withConn(ctx, e, o.TLS, func(g *greeter, socket net.Conn) error {
		defer closeQuietly(socket)
		s, offered, probeErr := g.probe(e.export)
		if probeErr == nil {
			d = s.describeTo(Details{Contexts: offered, TLS: e.tls})
		}
		return probeErr
	})
	if err != nil {
		return Details{}, fmt.Errorf("nbd: probe %s: %w", uri, err)
	}
	return d, nil
}

// probe asks for a description of an export, and for its contexts.
func (g *greeter) probe(export string) (s *session, offered []string, err error) {
	s = newSession()
	if !g.fixed {
		return s, nil, g.exportName(s, export)
	}
	if err = g.setFraming(s); err != nil {
		return nil, nil, err
	}
	if s.framing != simpleReplies {
		if offered, err = g.offeredContexts(export); err != nil {
			return nil, nil, err
		}
	}
	err = g.details(s, optInfo, infoRequest{export: export, infos: []uint16{infoBlockSize, infoName, infoDescription}})
	if e := refused(err); e != nil && e.rep == repErrUnsup && s.framing != extendedHeaders {
		return s, offered, g.exportName(s, export)
	}
	if err == nil {
		_ = g.option(optAbort, nil) // goodbye is only polite
	}
	return s, offered, err
}

// offeredContexts lists all metadata contexts. A server that has none, or tells
// nobody, is no error.
func (g *greeter) offeredContexts(export string) ([]string, error) {
	var offered []string
	r := metaRequest{export: export}
	err := g.ask(optListMetaContext, r.append(make([]byte, 0, 8+len(export))), func(rep uint32, data []byte) error {
		if rep != repMetaContext {
			return fmt.Errorf("the server answered LIST_META_CONTEXT with %#x", rep)
		}
		c := cursor{b: data}
		_ = c.u32() // an ID is for those that are selected
		switch {
		case c.bad || len(c.b) > maxName:
			return errors.New("the server listed a malformed metadata context")
		case len(offered) >= maxOffered:
			return fmt.Errorf("the server listed more than %d metadata contexts", maxOffered)
		}
		if name := string(c.b); clean(name) == name { // what cannot be shown cannot be asked for either
			offered = append(offered, name)
		}
		return nil
	})
	if refused(err) == nil {
		return offered, err
	}
	return nil, nil
}

// describeTo adds what was negotiated to d.
func (s *session) describeTo(d Details) Details {
	has := func(flag uint16) bool { return s.flags&flag != 0 }
	d.Name, d.Description, d.Size, d.BlockSizes = s.name, s.description, s.size, s.blocks
	d.ReadOnly, d.Rotational = has(flagReadOnly), has(flagRotational)
	d.CanFlush, d.CanFUA, d.CanTrim = has(flagSendFlush), has(flagSendFUA), has(flagSendTrim)
	d.CanZero, d.CanFastZero = has(flagSendZeroes), has(flagSendZeroes) && has(flagSendFastZero)
	d.CanMultiConn = has(flagCanMultiConn)
	d.Structured, d.Extended = s.framing != simpleReplies, s.framing == extendedHeaders
	slices.Sort(d.Contexts)
	return d
}
