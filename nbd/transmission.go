package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
)

// How a connection is served.
//
// One goroutine, the loop, reads all the requests that have arrived, answers
// what it can at once, and writes the replies in one go when input runs out.
// When nothing is left to do it looks out for more before it sleeps (linger.go), and
// lets other connections have their turn when it never does (turn.go).
// That is the fast path: no goroutine switch, no lock that anybody contends for,
// about one system call each way for many requests. It only takes what is not
// expected to wait:
//
//	small read from a file    preadv2(RWF_NOWAIT) into the reply
//	large read from a file    splice file -> pipe -> socket, if its pages are cached
//	write to a file           pwrite, or splice socket -> pipe -> file,
//	                          unless writes have lately been slow
//
// Everything else is deferred: it runs on a goroutine of its own, at most
// maxInFlight of them, with bounded memory, and its reply overtakes nothing that
// matters, because NBD lets replies come in any order. So a flush, a cold read
// or a write that waits for a preimage never holds up the requests behind it.
//
// Replies of both kinds meet in output.
const (
	// readBuffer holds what has arrived and is not served yet. Writes up to
	// maxBufferedWrite are taken from it without a copy.
	readBuffer       = 256 << 10
	maxBufferedWrite = 128 << 10
	// largeRead is where a splice begins to cost less than a copy.
	largeRead = 64 << 10
	// maxPiece is the largest part of a request that is in memory at once.
	maxPiece = 1 << 20
	// smallPiece is that of a read in the background. It takes some 30 µs.
	smallPiece = 64 << 10
	// holeProbe is the length from which a read is worth asking the device
	// for holes first.
	holeProbe = 256 << 10
)

// transmission is a connection after negotiation.
type transmission struct {
	in   *input
	out  output
	lane lane

	dev        Device
	file       FileBacked // nil when the device is not a file
	raw        syscall.RawConn
	counters   *Counters
	readOnly   bool
	background bool
	structured bool
	extended   bool // requests and replies have extended headers, and so does structured hold
	headSize   int  // of a request
	contexts   []string
	mapHoles   bool // Map knows holes
	nowait     bool // the file takes RWF_NOWAIT, as far as is known
	pipe       *pipe
	linger     linger

	// exact makes the next read from the connection stop after one header, so
	// that the payload of a large write stays in the socket, ready for splice.
	exact bool
	// writes is whether the loop does them; deferredWrites how many parts of others are
	// being written behind it.
	writes         patience
	deferredWrites atomic.Int32
	// reads is for those that cannot tell whether they would wait, without nowait.
	reads patience
}

// request is the header of a request.
type request struct {
	flags, command uint16
	cookie, offset uint64
	length         uint64
	payload        bool // length bytes follow the header
}

// start and size are offset and length as a device takes them. They are right once
// check has found them within its size, or where they tell the size of a payload.
func (r request) start() int64 { return int64(r.offset) } //nolint:gosec // see above
func (r request) size() int64  { return int64(r.length) } //nolint:gosec // see above

func newTransmission(c *conn) *transmission {
	c.in.resize(readBuffer)
	t := &transmission{
		in:         &c.in,
		out:        output{nc: c.nc, w: c.nc, socket: c.socket},
		dev:        c.dev,
		counters:   c.export.Counters,
		readOnly:   c.export.ReadOnly,
		background: c.export.Background,
		structured: c.structured,
		extended:   c.extended,
		headSize:   requestSize,
		contexts:   c.meta.contexts,
		nowait:     true,
	}
	if t.extended {
		t.headSize = extRequestSize
	}
	t.lane.init(&c.s.memory)
	t.linger = newLinger(&t.lane)
	if !t.background {
		t.linger.counts = 1
	}
	if t.counters == nil {
		t.counters = new(Counters)
	}
	if c.export.Contexts != nil {
		for _, name := range c.export.Contexts() {
			t.mapHoles = t.mapHoles || name == ContextAllocation
		}
	}
	if file, ok := c.dev.(FileBacked); ok {
		t.file = file
	}
	if raw := rawConn(c.socket); raw != nil {
		raiseSendBuffer(raw)
	}
	if t.raw = rawConn(c.nc); t.raw != nil {
		t.out.raw, t.out.w = t.raw, newQuickWriter(t.raw)
		t.in.nc = newQuickReader(c.nc, t.raw, &t.linger)
	}
	return t
}

// run serves until the client leaves, and returns when nothing of it is with
// the device any more. cancel ends the context of the device, so that requests
// of a client that vanished need not be finished.
func (t *transmission) run(ctx context.Context, cancel context.CancelFunc) error {
	t.counters.Connections.Add(1)
	defer t.counters.Connections.Add(-1)
	everybody.waiting.Add(t.linger.counts)
	defer everybody.waiting.Add(-t.linger.counts)
	waits, gone := context.WithCancel(ctx)
	defer gone()
	err := t.loop(waits)
	if errors.Is(err, io.EOF) {
		// The client left between two requests, without a goodbye: what it had sent
		// is done, but of what takes long nothing more is begun.
		gone()
		err = nil
	}
	if err != nil {
		cancel()
		closeQuietly(t.out.socket) // wakes those who wait for the client to take replies
	}
	t.lane.wait()
	if err == nil {
		err = t.out.flush()
	}
	return errors.Join(err, t.dropPipe())
}

// loop returns nil when the client has said goodbye, and io.EOF when it has left
// between two requests. ctx ends when nobody waits for replies any more.
func (t *transmission) loop(ctx context.Context) error {
	for {
		if err := t.next(); err != nil {
			return err
		}
		r, err := t.parse(t.in.take(t.headSize))
		switch {
		case err != nil || r.command == cmdDisc:
			return err
		case r.payload && r.command == cmdBlockStatus:
			err = t.filteredStatus(ctx, r)
		default:
			err = t.handle(ctx, r)
		}
		if err != nil {
			return err
		}
	}
}

// parse decodes a header. An error is one behind which nobody knows where the
// next request begins, or that would be too far away.
func (t *transmission) parse(b []byte) (request, error) {
	r := request{
		flags:   binary.BigEndian.Uint16(b[4:]),
		command: binary.BigEndian.Uint16(b[6:]),
		cookie:  binary.BigEndian.Uint64(b[8:]),
		offset:  binary.BigEndian.Uint64(b[16:]),
	}
	want := magicRequest
	if t.extended {
		want = magicExtRequest
		r.length = binary.BigEndian.Uint64(b[24:])
		// The flag is a duty of who writes, but qemu has never set it there.
		r.payload = r.flags&cmdFlagPayloadLen != 0 || r.command == cmdWrite
	} else {
		r.length = uint64(binary.BigEndian.Uint32(b[24:]))
		r.payload = r.command == cmdWrite
	}
	if magic := binary.BigEndian.Uint32(b); magic != want {
		return r, fmt.Errorf("nbd: client sent the request magic %#x", magic)
	}
	if t.extended && r.payload && r.length > maxPayload {
		return r, fmt.Errorf("nbd: client announced a payload of %d bytes", r.length)
	}
	return r, nil
}

// next waits for a header. What has been answered is sent first.
func (t *transmission) next() error {
	if t.in.buffered() >= t.headSize {
		return nil
	}
	if err := t.out.flush(); err != nil {
		return err
	}
	t.linger.turn()
	most := readBuffer
	if t.exact {
		most, t.exact = t.headSize, false
	}
	return t.in.fill(t.headSize, most)
}

// handle answers one request, or sees to it that it will be. An error ends the
// connection; that of the device does not come here.
func (t *transmission) handle(ctx context.Context, r request) error {
	if e, text := t.check(r); e != 0 {
		return t.reject(r, e, text)
	}
	if r.length == 0 && r.command != cmdFlush {
		return t.finish(r, nil, false) // the protocol leaves it open; nothing is what they get
	}
	switch r.command {
	case cmdRead:
		return t.read(r)
	case cmdWrite:
		return t.write(r)
	case cmdFlush:
		return t.spawn(r, t.flush)
	case cmdTrim:
		return t.spawn(r, func() error { return t.trim(ctx, r) })
	case cmdWriteZeroes:
		return t.spawn(r, func() error { return t.zero(ctx, r) })
	case cmdCache:
		return t.spawn(r, func() error { return t.cache(ctx, r) })
	default: // check let only BLOCK_STATUS through
		return t.deferred(statusMemory, func() { t.status(ctx, r, nil) })
	}
}

// spawn answers a request with the outcome of fn, which may take its time.
func (t *transmission) spawn(r request, fn func() error) error {
	return t.deferred(0, func() { t.finishSoon(r, fn()) })
}

// deferred runs fn on another goroutine once there is room for it. It waits for
// no one but this connection's own requests.
func (t *transmission) deferred(memory int64, fn func()) error {
	g, ok := t.lane.try(memory)
	if !ok {
		// The client may be waiting for these before it sends or reads on.
		if err := t.out.flush(); err != nil {
			return err
		}
		g = t.lane.enter(memory)
	}
	t.lane.start(g, fn)
	return nil
}
