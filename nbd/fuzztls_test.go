package nbd

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// FuzzServerTLS lets a client of a server that insists on TLS say anything: in plain text,
// in the place of the handshake of TLS, or, with a certificate, inside TLS.
func FuzzServerTLS(f *testing.F) {
	a := tlstest.New(f)
	client := a.ClientConfig("c")
	server := a.ServerConfig()
	startTLS := encode("IHAVEOPT", optStartTLS, uint32(0))
	f.Add(encode(uint32(3), startTLS), uint8(0))
	f.Add(encode(uint32(3), startTLS, "IHAVEOPT", optStructuredReply, uint32(0)), uint8(0))
	f.Add(encode(uint32(3), "IHAVEOPT", optGo, uint32(1<<20), make([]byte, 100)), uint8(0))
	f.Add([]byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 3}, uint8(1))
	f.Add(append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...), uint8(1))
	f.Add(script(64, false)[4:], uint8(2))
	f.Add(script(64, true)[4:], uint8(2))
	f.Add(startTLS, uint8(2))
	f.Fuzz(func(t *testing.T, said []byte, where uint8) {
		m := newMemory(1 << 20)
		s := withTLS(serverOf(t, m.export("disk")), server)
		inside := where%3 == 2
		switch where % 3 {
		case 0:
			s.ServeConn(t.Context(), canned{bytes.NewReader(said)})
		case 1: // the bytes come after the acknowledgement, or they would count as injected
			talk(t, s, func(nc net.Conn) {
				done := make(chan struct{})
				go func() { defer close(done); _, _ = io.Copy(io.Discard, nc) }() // an alert, for which the server would wait
				_, _ = nc.Write(said)                                             // the server may have hung up
				closeQuietly(nc)
				<-done
			})
		case 2:
			talk(t, s, func(nc net.Conn) {
				secret := tls.Client(nc, client)
				if err := secret.Handshake(); err != nil {
					t.Error(err)
					return
				}
				done := make(chan struct{})
				go func() { defer close(done); _, _ = io.Copy(io.Discard, secret) }()
				_, _ = secret.Write(said) // as above
				closeQuietly(nc)
				<-done
			})
		}
		if opened := m.opened.Load(); opened != m.closed.Load() || opened > 1 || opened > 0 && !inside {
			t.Errorf("opened %d times, closed %d times", opened, m.closed.Load())
		}
	})
}

// talk asks a server for TLS, and goes on once that is acknowledged.
func talk(t *testing.T, s *Server, then func(net.Conn)) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); s.ServeConn(t.Context(), far) }()
	w := &wire{t: t, nc: near}
	w.hello()
	w.option(optStartTLS)
	w.expectReply(optStartTLS, repAck, nil)
	drained := make(chan struct{})
	go func() { <-done; closeQuietly(near); close(drained) }()
	then(near)
	closeQuietly(near)
	<-drained
}

// FuzzClientTLS lets a server say anything in the place of the handshake of TLS: the
// client never goes on without TLS.
func FuzzClientTLS(f *testing.F) {
	a := tlstest.New(f)
	conf := a.ClientConfig("c")
	hello := encode("NBDMAGIC", "IHAVEOPT", uint16(3))
	ack := encode(magicOptReply, optStartTLS, repAck, uint32(0))
	f.Add(encode(hello, ack, []byte{22, 3, 3, 0, 4, 2, 0, 0, 0}))
	f.Add(encode(hello, ack, "NBDMAGIC"))
	f.Add(encode(hello, magicOptReply, optStartTLS, repErrUnsup, uint32(2), "no"))
	f.Add(encode(hello, magicOptReply, optStartTLS, repErrPolicy, uint32(1<<31)))
	f.Add(encode("NBDMAGIC", "IHAVEOPT", uint16(0), uint64(512), rwFlags, make([]byte, exportNamePadding)))
	f.Fuzz(func(t *testing.T, answers []byte) {
		g := &greeter{in: input{nc: canned{bytes.NewReader(answers)}}}
		if err := g.begin(t.Context(), conf); err == nil {
			t.Error("the client is content")
		}
	})
}
