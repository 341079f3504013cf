package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// drip sends bytes one by one until the server hangs up, which it has to do before the
// last of them.
func drip(t *testing.T, nc net.Conn, p []byte) {
	t.Helper()
	gone := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, nc)
		gone <- err
	}()
	for i := range p {
		if _, err := nc.Write(p[i : i+1]); err != nil {
			break
		}
		pause(t.Context(), 2*time.Millisecond)
	}
	if err := <-gone; errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server has not hung up")
	}
}

// Who shakes hands byte by byte, in plain text or in TLS, has the time that everybody
// has, and no more for each byte.
func TestSlowHandshake(t *testing.T) {
	noLeaks(t)
	t.Run("cut off", func(t *testing.T) {
		a := tlstest.New(t)
		plain := serverOf(t, newMemory(1<<20).export("disk"))
		secret := withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.ServerConfig())
		for _, s := range []*Server{plain, secret} {
			s.o.HandshakeTimeout = 100 * time.Millisecond
		}
		long := encode("IHAVEOPT", optGo, uint32(maxOptionData), make([]byte, maxOptionData))
		t.Run("options", func(t *testing.T) {
			w := connect(t, listen(t, plain))
			w.hello()
			drip(t, w.nc, long)
		})
		t.Run("flags", func(t *testing.T) {
			w := connect(t, listen(t, plain))
			drip(t, w.nc, []byte{0, 0})
		})
		t.Run("hello of TLS", func(t *testing.T) {
			w := connect(t, listen(t, secret))
			w.hello()
			w.option(optStartTLS)
			w.expectReply(optStartTLS, repAck, nil)
			drip(t, w.nc, append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...))
		})
		t.Run("options in TLS", func(t *testing.T) {
			w := connect(t, listen(t, secret))
			w.hello()
			w = w.startTLS(a.ClientConfig("c"))
			drip(t, w.nc, long)
		})
	})
}

// secured and not, connections whose clients are slow or do not listen hold up nobody.
func slowClients(t *testing.T, fn func(t *testing.T, s *Server, enter func() *wire)) {
	t.Helper()
	noLeaks(t)
	a := tlstest.New(t)
	for _, kind := range kinds[:2] {
		for _, conf := range []*tls.Config{nil, a.ClientConfig("c")} {
			name := kind.name
			if conf != nil {
				name += " in TLS"
			}
			t.Run(name, func(t *testing.T) {
				d, m := kind.device(t, 64<<20)
				for off, p := int64(0), bytes.Repeat([]byte{7}, 1<<20); off < 64<<20; off += 1 << 20 {
					if _, err := d.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
				}
				e := m.export("disk")
				e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
				s := serverOf(t, e)
				if conf != nil {
					s = withTLS(s, a.ServerConfig())
				}
				path := listen(t, s)
				fn(t, s, func() *wire {
					w := connect(t, path)
					w.hello()
					if conf != nil {
						w = w.startTLS(conf)
					}
					w.enterAfterHello("disk", true)
					return w
				})
			})
		}
	}
}

// A request that comes byte by byte is served like any other, and others meanwhile.
func TestSlowRequests(t *testing.T) {
	slowClients(t, func(t *testing.T, _ *Server, enter func() *wire) {
		t.Helper()
		slow, other := enter(), enter()
		payload := bytes.Repeat([]byte("slow"), 100)
		for i, b := range encode(magicRequest, cmdFlagFUA, cmdWrite, uint64(5), uint64(1000), uint32(len(payload)), payload) {
			slow.send([]byte{b})
			if i%20 == 0 {
				other.alive()
			}
		}
		slow.expectSimple(5, 0)
		got := make([]byte, 1000+len(payload))
		slow.request(cmdFlagDF, cmdRead, 6, 1000, uint32(len(payload)))
		slow.readChunks(got, 6, len(payload))
		if !bytes.Equal(got[1000:], payload) {
			t.Error("read something else")
		}
	})
}

// A client that asks for much and takes no replies costs others nothing, and the server
// no more memory than it may use; when it leaves, that comes back.
func TestDeafClients(t *testing.T) {
	slowClients(t, func(t *testing.T, s *Server, enter func() *wire) {
		t.Helper()
		var deaf []*wire
		for range 4 {
			w := enter()
			for i := range uint64(maxInFlight) {
				w.request(0, cmdRead, i, 0, 32<<20)
			}
			deaf = append(deaf, w)
		}
		for _, w := range deaf {
			w.read(1) // it is being answered
		}
		other := enter()
		p := bytes.Repeat([]byte{9}, 8<<20)
		other.request(0, cmdWrite, 1, 32<<20, uint32(len(p)), p)
		other.expectSimple(1, 0)
		got := make([]byte, 40<<20)
		other.request(0, cmdRead, 2, 32<<20, uint32(len(p)))
		other.readChunks(got, 2, len(p))
		if !bytes.Equal(got[32<<20:], p) {
			t.Error("read something else")
		}
		for _, w := range deaf {
			closeQuietly(w.nc)
		}
		other.alive()
		waitFor(t, func() bool {
			s.memory.mu.Lock()
			defer s.memory.mu.Unlock()
			return s.memory.used == 0
		})
	})
}
