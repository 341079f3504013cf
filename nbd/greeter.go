package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"
)

const (
	// clientBuffer takes replies' headers and small payloads.
	clientBuffer = 32 << 10
	// maxListed bounds what a server may answer to one option.
	maxListed = 16 << 10
)

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
	repErrTLSReqd:    "the server requires TLS: use an nbds:// or nbds+unix:// URI",
	repErrUnknown:    "the server has no export of that name",
	repErrShutdown:   "the server is shutting down",
	repErrBlockSize:  "the server requires its block sizes to be kept",
	repErrTooBig:     "the server calls the option too big",
	repErrExtHdrReqd: "the server requires extended headers, which it did not agree to",
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

// begin greets the server and makes the connection what options may be sent
// over; without TLS c is nil.
func (g *greeter) begin(ctx context.Context, c *tls.Config) error {
	if err := g.greet(); err != nil || c == nil {
		return err
	}
	return g.startTLS(ctx, c)
}

// refused returns the refusal in err, or nil.
func refused(err error) *optionError {
	e, _ := errors.AsType[*optionError](err)
	return e
}

// list asks for the names of all exports.
func (g *greeter) list() ([]ExportInfo, error) {
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

// offer asks for something that a server need not have.
func (g *greeter) offer(opt uint32) (ok bool, err error) {
	err = g.ask(opt, nil, func(rep uint32, _ []byte) error {
		return fmt.Errorf("the server answered option %d with %#x", opt, rep)
	})
	if e := refused(err); e != nil && e.rep != repErrTLSReqd { // which refuses all there is
		return false, nil
	}
	return err == nil, err
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
