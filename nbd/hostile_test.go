package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"net"
	"strings"
	"testing"
	"time"
)

// fakeServer accepts one connection after the other and lets talk play the
// server on each.
func fakeServer(t *testing.T, talk func(w *wire)) (uri string) {
	t.Helper()
	path := t.TempDir() + "/fake"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			func() {
				defer closeQuietly(nc)
				talk(&wire{t: fakeTB{t}, nc: nc})
			}()
		}
	}()
	t.Cleanup(func() {
		closeQuietly(l)
		<-done
	})
	return URI(path, "disk")
}

// fakeTB lets a wire fail on another goroutine: what the client then makes of
// the silence fails the test.
type fakeTB struct{ testing.TB }

func (f fakeTB) Fatalf(format string, args ...any) { f.Logf(format, args...) }

// strictTB is for a fake server that hears exact bytes: it fails the test, from
// whichever goroutine.
type strictTB struct{ testing.TB }

func (s strictTB) Fatalf(format string, args ...any) { s.Errorf(format, args...) }

// greetOption answers the greeting, has no extended headers, and reads the next
// option.
func (w *wire) greetOption() (opt uint32) {
	w.greet()
	w.answer(w.readOption(), repErrUnsup)
	return w.readOption()
}

// greet answers the greeting.
func (w *wire) greet() {
	w.send("NBDMAGIC", "IHAVEOPT", uint16(3))
	w.read(4)
}

func (w *wire) readOption() uint32 {
	h := w.read(optionHeaderSize)
	w.read(int(binary.BigEndian.Uint32(h[12:])))
	return binary.BigEndian.Uint32(h[8:])
}

func (w *wire) answer(opt, rep uint32, parts ...any) {
	data := encode(parts...)
	w.send(magicOptReply, opt, rep, uint32(len(data)), data)
}

// welcome plays a server up to transmission: 1 MiB, structured replies, one
// context with the ID 5.
func (w *wire) welcome() {
	w.greetOption()
	w.answer(optStructuredReply, repAck)
	w.admit(1<<20, rwFlags)
}

// welcomeExtended is welcome with extended headers.
func (w *wire) welcomeExtended(size uint64, flags uint16) {
	w.greet()
	w.answer(w.readOption(), repAck)
	w.admit(size, flags)
}

// admit plays the end of the handshake.
func (w *wire) admit(size uint64, flags uint16) {
	w.readOption()
	w.answer(optSetMetaContext, repMetaContext, uint32(5), ContextAllocation)
	w.answer(optSetMetaContext, repAck)
	w.readOption()
	w.answer(optGo, repInfo, infoExport, size, flags)
	w.answer(optGo, repAck)
}

// A server that breaks the handshake gets an error, not a client.
func TestHostileServerHandshake(t *testing.T) {
	goData := func(w *wire) {
		w.greetOption()
		w.answer(optStructuredReply, repAck)
		w.readOption()
		w.answer(optSetMetaContext, repErrUnsup)
		w.readOption()
	}
	tests := []struct {
		name, want string
		talk       func(w *wire)
	}{
		{"nothing", "EOF", func(*wire) {}},
		{"short greeting", "EOF", func(w *wire) { w.send("NBDMAGICIHAVE") }},
		{"ssh", "not an NBD server", func(w *wire) { w.send("SSH-2.0-OpenSSH_9.2p1 Debian") }},
		{"oldstyle", "oldstyle", func(w *wire) { w.send("NBDMAGIC", magicOldstyle, make([]byte, 136)) }},
		{"bad second magic", "handshake magic", func(w *wire) { w.send("NBDMAGIC", "IHAVEOPS", uint16(3)) }},
		{"bad reply magic", "reply magic", func(w *wire) { w.greetOption(); w.send(make([]byte, optReplyHeadSize)) }},
		{"answer to another option", "answered option 7, not 8", func(w *wire) { w.greetOption(); w.answer(optGo, repAck) }},
		{"huge reply", "announced a reply of 4294967295 bytes", func(w *wire) {
			w.greetOption()
			w.send(magicOptReply, optStructuredReply, repErrInvalid, uint32(math.MaxUint32))
		}},
		{"data with an acknowledgement", "acknowledgement", func(w *wire) { w.greetOption(); w.answer(optStructuredReply, repAck, "x") }},
		{"unasked context", "nobody asked for", func(w *wire) {
			w.greetOption()
			w.answer(optStructuredReply, repAck)
			w.readOption()
			w.answer(optSetMetaContext, repMetaContext, uint32(1), "evil:\x1b[2J")
		}},
		{"context twice", "nobody asked for", func(w *wire) {
			w.greetOption()
			w.answer(optStructuredReply, repAck)
			w.readOption()
			w.answer(optSetMetaContext, repMetaContext, uint32(1), ContextAllocation)
			w.answer(optSetMetaContext, repMetaContext, uint32(2), ContextAllocation)
		}},
		{"no size", "without telling its size", func(w *wire) { goData(w); w.answer(optGo, repAck) }},
		{"huge size", "18446744073709551615 bytes", func(w *wire) {
			goData(w)
			w.answer(optGo, repInfo, infoExport, uint64(math.MaxUint64), rwFlags)
		}},
		{"short info", "malformed", func(w *wire) { goData(w); w.answer(optGo, repInfo, infoExport, uint32(1)) }},
		{"block size zero", "impossible block sizes", func(w *wire) {
			goData(w)
			w.answer(optGo, repInfo, infoBlockSize, uint32(0), uint32(4096), uint32(1<<20))
		}},
		{"block size odd", "impossible block sizes", func(w *wire) {
			goData(w)
			w.answer(optGo, repInfo, infoBlockSize, uint32(3), uint32(4096), uint32(1<<20))
		}},
		{"payload below a block", "impossible block sizes", func(w *wire) {
			goData(w)
			w.answer(optGo, repInfo, infoBlockSize, uint32(4096), uint32(4096), uint32(512))
		}},
		{"endless answers", "more than", func(w *wire) {
			goData(w)
			for range maxListed + 1 {
				if _, err := w.nc.Write(encode(magicOptReply, optGo, repInfo, uint32(2), uint16(99))); err != nil {
					return
				}
			}
		}},
		{"unknown export", `no export of that name: text with ?[31m control`, func(w *wire) {
			goData(w)
			w.answer(optGo, repErrUnknown, "text with \x1b[31m control")
		}},
		{"TLS required", "requires TLS", func(w *wire) { goData(w); w.answer(optGo, repErrTLSReqd) }},
		{"export name and hang up", "most likely because it has no export", func(w *wire) {
			goData(w)
			w.answer(optGo, repErrUnsup)
			w.readOption()
		}},
	}
	noLeaks(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Dial(t.Context(), fakeServer(t, test.talk), ClientOptions{Contexts: []string{ContextAllocation}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want something of %q", err, test.want)
			}
			if test.name == "unknown export" && !errors.Is(err, fs.ErrNotExist) {
				t.Error("not fs.ErrNotExist")
			}
		})
	}
}

// A server that never ends the handshake costs only the time that was allowed.
func TestHostileServerSilent(t *testing.T) {
	noLeaks(t)
	release := make(chan struct{})
	uri := fakeServer(t, func(w *wire) { w.greetOption(); <-release })
	_, err := Dial(t.Context(), uri, ClientOptions{DialTimeout: 30 * time.Millisecond})
	close(release)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer within 30ms") {
		t.Fatal(err)
	}
}

// A server that breaks the protocol in its replies ends the client.
func TestHostileServerReplies(t *testing.T) {
	chunk := func(flags, kind uint16, cookie uint64, parts ...any) []byte {
		data := encode(parts...)
		return encode(magicStructured, flags, kind, cookie, uint32(len(data)), data)
	}
	head := func(kind uint16, length uint32) []byte {
		return encode(magicStructured, chunkFlagDone, kind, uint64(1), length, make([]byte, 64))
	}
	tests := []struct {
		name, want string
		reply      []byte // to a read of 4096 bytes at 8192 and, if status is set, a BLOCK_STATUS of it
		status     bool
	}{
		{"bad magic", "reply magic", encode(uint64(1), uint64(2)), false},
		{"unknown cookie", "not pending", chunk(1, chunkNone, 2), false},
		{"unknown cookie, simple", "not pending", encode(magicSimple, uint32(0), uint64(9)), false},
		{"simple reply to a read", "simple reply", encode(magicSimple, uint32(0), uint64(1)), false},
		{"unknown flags", "flags", chunk(3, chunkNone, 1), false},
		{"unknown type", "chunk of type 9", chunk(1, 9, 1), false},
		{"status for a read", "chunk of type 5", chunk(1, chunkBlockStatus, 1, uint32(5), uint32(1), uint32(0)), false},
		{"none with data", "chunk of type 0", chunk(1, chunkNone, 1, "x"), false},
		{"none without done", "chunk of type 0", chunk(0, chunkNone, 1), false},
		{"end without data", "before all had come", chunk(1, chunkNone, 1), false},
		{"too little", "before all had come", chunk(1, chunkOffsetData, 1, uint64(8192), "abc"), false},
		{"before the range", "bytes at 8191", chunk(1, chunkOffsetData, 1, uint64(8191), "abc"), false},
		{"beyond the range", "bytes at 12287", chunk(1, chunkOffsetData, 1, uint64(12287), "ab"), false},
		{"far away", "18446744073709551615", chunk(1, chunkOffsetData, 1, uint64(math.MaxUint64), "ab"), false},
		{"more than all", "4294967287 bytes", encode(magicStructured, uint16(1), chunkOffsetData, uint64(1), uint32(math.MaxUint32), uint64(8192)), false},
		{"data twice", "twice", append(chunk(0, chunkOffsetData, 1, uint64(8200), "abcd"), chunk(0, chunkOffsetData, 1, uint64(8203), "e")...), false},
		{"hole over data", "twice", append(chunk(0, chunkOffsetData, 1, uint64(8200), "abcd"), chunk(1, chunkOffsetHole, 1, uint64(8192), uint32(4096))...), false},
		{"hole too long", "for a read", chunk(1, chunkOffsetHole, 1, uint64(8192), uint32(4097)), false},
		{"empty hole", "sent 0 bytes", chunk(1, chunkOffsetHole, 1, uint64(8192), uint32(0)), false},
		{"empty data", "sent 0 bytes", chunk(1, chunkOffsetData, 1, uint64(8192)), false},
		{"short data chunk", "data chunk of 7", head(chunkOffsetData, 7), false},
		{"short hole chunk", "hole chunk of 11", head(chunkOffsetHole, 11), false},
		{"short error", "error chunk of 5", head(chunkError, 5), false},
		{"long error", "error chunk of 65537", head(chunkError, maxOptionData+1), false},
		{"error text beyond", "malformed error", chunk(1, chunkError, 1, EIO, uint16(5), "x"), false},
		{"hang up", "EOF", nil, false},
		{"half a reply", "EOF", chunk(1, chunkOffsetData, 1, uint64(8192), "ab")[:21], false},
		{"status missing", "without the context", chunk(1, chunkNone, 1), true},
		{"status by simple reply", "without a status", encode(magicSimple, uint32(0), uint64(1)), true},
		{"status of another context", "not negotiated", chunk(1, chunkBlockStatus, 1, uint32(6), uint32(4096), uint32(0)), true},
		{"status twice", "twice", append(chunk(0, chunkBlockStatus, 1, uint32(5), uint32(9), uint32(0)), chunk(1, chunkBlockStatus, 1, uint32(5), uint32(4096), uint32(0))...), true},
		{"status without extents", "status chunk of 4", chunk(1, chunkBlockStatus, 1, uint32(5)), true},
		{"status odd", "status chunk of 13", chunk(1, chunkBlockStatus, 1, uint32(5), uint32(9), uint32(0), "x"), true},
		{"status huge", "status chunk of 4294967292", encode(magicStructured, uint16(1), chunkBlockStatus, uint64(1), uint32(math.MaxUint32-3)), true},
		{"empty extent", "empty extent", chunk(1, chunkBlockStatus, 1, uint32(5), uint32(0), uint32(0)), true},
		{"extents beyond the end", "more extents", chunk(1, chunkBlockStatus, 1, uint32(5), uint32(1<<20), uint32(0), uint32(1), uint32(1)), true},
		{"data for a status", "chunk of type 1", chunk(1, chunkOffsetData, 1, uint64(8192), "ab"), true},
	}
	noLeaks(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			uri := fakeServer(t, func(w *wire) {
				w.welcome()
				w.read(requestSize)
				w.send(test.reply)
			})
			c, err := Dial(t.Context(), uri, ClientOptions{Contexts: []string{ContextAllocation}})
			if err != nil {
				t.Fatal(err)
			}
			if test.status {
				_, err = c.Map(t.Context(), ContextAllocation, 8192, 4096)
			} else {
				err = c.ReadAt(t.Context(), make([]byte, 4096), 8192)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want something of %q", err, test.want)
			}
			if again := c.Flush(t.Context()); again == nil {
				t.Error("the client goes on")
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is odd but allowed is taken.
func TestOddServerReplies(t *testing.T) {
	uri := fakeServer(t, func(w *wire) {
		w.welcome()
		w.read(requestSize)
		// In no order, and ended by a chunk of its own.
		w.send(magicStructured, uint16(0), chunkOffsetData, uint64(1), uint32(10), uint64(2), "cd")
		w.send(magicStructured, uint16(0), chunkOffsetHole, uint64(1), uint32(12), uint64(4), uint32(4))
		w.send(magicStructured, uint16(0), chunkOffsetData, uint64(1), uint32(10), uint64(0), "ab")
		w.send(magicStructured, uint16(1), chunkNone, uint64(1), uint32(0))
		w.read(requestSize)
		w.send(magicStructured, uint16(1), chunkErrorBit|99, uint64(2), uint32(12), ENOSPC, uint16(4), "full", "??")
		w.read(requestSize)
		w.send(magicStructured, uint16(0), chunkErrorOffset, uint64(3), uint32(14), EIO, uint16(0), uint64(0))
		w.send(magicStructured, uint16(1), chunkOffsetData, uint64(3), uint32(9), uint64(0), "x")
		w.read(requestSize)
		w.send(magicSimple, uint32(4711), uint64(4))
		w.read(requestSize)
		// An extent that goes beyond what was asked, and a context nobody asked about now.
		w.send(magicStructured, uint16(1), chunkBlockStatus, uint64(5), uint32(20), uint32(5), uint32(10), uint32(1), uint32(1<<20-10), uint32(8))
		w.read(requestSize)
	})
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}})
	ctx := t.Context()
	p := []byte("????????")
	if err := c.ReadAt(ctx, p, 0); err != nil || string(p) != "abcd\x00\x00\x00\x00" {
		t.Errorf("%q, %v", p, err)
	}
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, ENOSPC) || !strings.Contains(err.Error(), "full") {
		t.Error(err)
	}
	if err := c.ReadAt(ctx, p, 0); !errors.Is(err, EIO) {
		t.Error(err)
	}
	if err := c.Flush(ctx); err == nil || !strings.Contains(err.Error(), "4711") {
		t.Error(err)
	}
	if e, err := c.Map(ctx, ContextAllocation, 0, 100); err != nil || len(e) != 2 || e[1].Length != 90 || e[1].State != 8 {
		t.Error(e, err)
	}
}
