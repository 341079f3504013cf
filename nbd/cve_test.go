package nbd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// Holes that other implementations had, each as a test of this one.

// nbd-server wrote past a buffer when an option's name length was near 2^32, as
// the sum with its header wrapped around.
func TestCVE_2022_26495(t *testing.T) {
	path := listen(t, serverOf(t, newMemory(1<<20).export("disk")))
	for _, opt := range []uint32{optInfo, optGo, optListMetaContext, optSetMetaContext} {
		for _, n := range []uint32{math.MaxUint32, math.MaxUint32 - 3, math.MaxUint32 - 5, 1 << 31, maxName + 1} {
			w := connect(t, path)
			w.hello()
			w.option(optStructuredReply)
			w.expectReply(optStructuredReply, repAck, nil)
			w.option(opt, n, "disk", uint16(0))
			w.expectReply(opt, repErrInvalid, nil)
			w.option(optAbort)
			w.expectReply(optAbort, repAck, nil)
		}
	}
}

// nbd-server had a fixed buffer for names in GO and INFO.
func TestCVE_2022_26496(t *testing.T) {
	path := listen(t, serverOf(t, newMemory(1<<20).export("disk")))
	w := connect(t, path)
	w.hello()
	for _, n := range []int{1024, maxName, 8192, maxOptionData - 6} {
		w.option(optGo, name(strings.Repeat("n", n)), uint16(0))
		rep := repErrUnknown
		if n > maxName {
			rep = repErrInvalid
		}
		w.expectReply(optGo, rep, nil)
	}
}

// qemu aborted on an option whose name was longer than its buffer, before any
// export was chosen.
func TestCVE_2017_15118(t *testing.T) {
	s := serverOf(t, newMemory(1<<20).export("disk"))
	lookup := s.o.Lookup
	s.o.Lookup = func(name string, p Peer) (*Export, bool) {
		if len(name) > maxName {
			t.Errorf("a name of %d bytes is looked up", len(name))
		}
		return lookup(name, p)
	}
	path := listen(t, s)
	w := connect(t, path)
	w.hello()
	w.option(optGo, name(strings.Repeat("n", 4097)), uint16(0))
	w.expectReply(optGo, repErrInvalid, nil)
	w = connect(t, path)
	w.hello()
	w.option(optExportName, strings.Repeat("n", 4097))
	w.expectEnd()
	connect(t, path).enter("disk", true)
}

// qemu crashed when its server was stopped while clients sat in the handshake,
// and let any number of them sit there.
func TestCVE_2024_7409(t *testing.T) {
	noLeaks(t)
	s := serverOf(t, newMemory(1<<20).export("disk"))
	s.o.HandshakeTimeout, s.o.MaxConns = time.Hour, 40
	path, l := socket(t)
	stop := serveOn(t, s, l)
	var waiting []*wire
	for i := range 40 {
		w := connect(t, path)
		w.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
		switch i % 3 {
		case 1:
			w.send(uint32(3))
		case 2:
			w.send(uint32(3), "IHAVEOPT", optGo, uint32(1000), "half of it")
		}
		waiting = append(waiting, w)
	}
	connect(t, path).expectEnd() // no more may sit there
	stop()
	for _, w := range waiting {
		w.expectEnd()
	}
}

// nbdkit opened the plugin for any client that connected, so that a port scan
// was enough to take the disk.
func TestCVE_2019_14850(t *testing.T) {
	m := newMemory(1 << 20)
	path := listen(t, serverOf(t, m.export("disk")))
	w := connect(t, path)
	w.hello()
	w.option(optInfo, name("disk"), uint16(0))
	w.expectReply(optInfo, repInfo, nil)
	w.expectReply(optInfo, repInfo, nil)
	w.expectReply(optInfo, repAck, nil)
	w.option(optAbort)
	w.expectReply(optAbort, repAck, nil)
	w.expectEnd()
	if m.opened.Load() != 0 {
		t.Error("the device was opened before GO")
	}
}

// nbdkit took what a man in the middle had put behind STARTTLS, in plain text, for
// what the client said inside TLS, and kept what was negotiated before.
func TestCVE_2021_3716(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	m := newMemory(1 << 20)
	startTLS := encode("IHAVEOPT", optStartTLS, uint32(0))
	injected := encode("IHAVEOPT", optStructuredReply, uint32(0))
	t.Run("injection", func(t *testing.T) {
		path := listen(t, withTLS(serverOf(t, m.export("disk")), a.ServerConfig()))
		t.Run("with STARTTLS", func(t *testing.T) {
			for n := range injected {
				w := connect(t, path)
				w.hello()
				w.send(startTLS, injected[:n+1])
				w.expectEnd() // without an acknowledgement
				closeQuietly(w.nc)
			}
		})
		t.Run("before the client's hello", func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			w.send(startTLS)
			w.expectReply(optStartTLS, repAck, nil)
			w.send(injected)
			nc := tls.Client(w.nc, a.ClientConfig("c"))
			if err := nc.Handshake(); err == nil {
				t.Error("the handshake passed over what was injected")
			}
			closeQuietly(w.nc)
		})
		t.Run("before STARTTLS", func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			w.send(injected)
			w.expectReply(optStructuredReply, repErrTLSReqd, nil)
			w = w.startTLS(a.ClientConfig("c"))
			w.option(optExportName, "disk")
			w.expect(uint64(1<<20), rwFlags&^flagSendDF) // the client did not ask for structured replies
			w.alive()
			closeQuietly(w.nc)
		})
	})
	if m.opened.Load() != 1 {
		t.Errorf("the device was opened %d times", m.opened.Load())
	}
}

// What a SET_META_CONTEXT leaves behind must not outlive the next one.
func TestMetaContextTakenBack(t *testing.T) {
	path := listen(t, serverOf(t, newMemory(1<<20).export("disk")))
	w := connect(t, path)
	w.hello()
	w.option(optStructuredReply)
	w.expectReply(optStructuredReply, repAck, nil)
	w.option(optSetMetaContext, name("disk"), uint32(1), name(ContextAllocation))
	w.expectReply(optSetMetaContext, repMetaContext, nil)
	w.expectReply(optSetMetaContext, repAck, nil)
	w.option(optSetMetaContext, name("disk"), uint32(0))
	w.expectReply(optSetMetaContext, repAck, nil)
	w.option(optExportName, "disk")
	w.expect(uint64(1<<20), rwFlags)
	w.request(0, cmdBlockStatus, 1, 0, 4096)
	w.expectError(1, EINVAL)
}

// nbdcopy ignored the outcome of what it had sent, and called a failed copy a
// success.
func TestCVE_2022_0485(t *testing.T) {
	m := newMemory(1 << 20)
	m.failWith(func(_ string, off, n int64) error {
		if off <= 512<<10 && off+n > 512<<10 {
			return syscall.EIO
		}
		return nil
	})
	c := dial(t, URI(listen(t, serverOf(t, m.export("disk"))), "disk"), ClientOptions{Contexts: []string{ContextAllocation}})
	p := bytes.Repeat([]byte{1}, 1<<20)
	if err := c.ReadAt(t.Context(), p, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	if err := c.WriteAt(t.Context(), p, 0, false); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := c.Zero(t.Context(), 0, 1<<20, true); !errors.Is(err, syscall.EIO) {
		t.Errorf("zero: %v", err)
	}
	if err := c.Trim(t.Context(), 0, 1<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("trim: %v", err)
	}
	if _, err := c.Map(t.Context(), ContextAllocation, 0, 1<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("map: %v", err)
	}
	m.failWith(func(string, int64, int64) error { return syscall.ENOSPC })
	if err := c.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush: %v", err)
	}
}

// libnbd took a block size or a size at or above 2^63 for a number of its own,
// with a sign.
func TestCVE_2023_5215(t *testing.T) {
	for _, size := range []uint64{1 << 63, math.MaxUint64, math.MaxInt64 + 1} {
		uri := fakeServer(t, func(w *wire) {
			w.greetOption()
			w.answer(optStructuredReply, repErrUnsup)
			w.readOption()
			w.answer(optGo, repInfo, infoExport, size, flagHasFlags)
			w.answer(optGo, repAck)
		})
		if _, err := Dial(t.Context(), uri, ClientOptions{}); err == nil {
			t.Errorf("a size of %d was taken", size)
		}
	}
}
