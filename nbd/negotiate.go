package nbd

import (
	"errors"
	"fmt"
	"slices"
)

// choose negotiates everything that this client can use, and the export.
func (g *greeter) choose(export string, contexts []string) (*session, error) {
	s := newSession()
	if !g.fixed {
		return s, g.exportName(s, export)
	}
	if err := g.setFraming(s); err != nil {
		return nil, err
	}
	if s.framing != simpleReplies && len(contexts) > 0 {
		if err := g.setContexts(s, export, contexts); err != nil {
			return nil, err
		}
	}
	err := g.details(s, optGo, infoRequest{export: export, infos: []uint16{infoBlockSize}})
	if e := refused(err); e != nil && e.rep == repErrUnsup && s.framing != extendedHeaders {
		return s, g.exportName(s, export)
	}
	return s, err
}

// setFraming negotiates the best that both sides know.
func (g *greeter) setFraming(s *session) error {
	ok, err := g.offer(optExtendedHeaders)
	if ok {
		s.framing = extendedHeaders // comes with all that structured replies have
	}
	if err != nil || ok {
		return err
	}
	if ok, err = g.offer(optStructuredReply); ok {
		s.framing = structuredReplies
	}
	return err
}

// details asks for a description of the export, by GO or INFO.
func (g *greeter) details(s *session, opt uint32, r infoRequest) error {
	var sized bool
	err := g.ask(opt, r.append(nil), func(rep uint32, data []byte) error {
		if rep != repInfo {
			return fmt.Errorf("the server answered option %d with %#x", opt, rep)
		}
		return s.info(data, &sized)
	})
	if err == nil && !sized {
		err = errors.New("the server accepted the export without telling its size")
	}
	return err
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

// exportName asks for the export in the way that every server knows. Its only
// refusal is to hang up.
func (g *greeter) exportName(s *session, export string) error {
	if err := g.option(optExportName, []byte(export)); err != nil {
		return err
	}
	if err := g.in.fill(10, clientBuffer); err != nil {
		return fmt.Errorf("the server hung up, most likely because it has no export of that name, or wants TLS (then use an nbds URI): %w",
			midway(err))
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
