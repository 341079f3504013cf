package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// upgrade answers STARTTLS, the first option, and goes on in TLS.
func (w *wire) upgrade(c *tls.Config) {
	w.greet()
	w.answer(w.readOption(), repAck)
	w.secure(c)
}

// secure goes on in TLS.
func (w *wire) secure(c *tls.Config) {
	nc := tls.Server(w.nc, c)
	if err := nc.Handshake(); err != nil {
		w.t.Logf("handshake: %v", err)
	}
	w.nc = nc
}

// secured makes a URI of a test's server one that asks for TLS.
func secured(uri, parameters string) string {
	return strings.Replace(uri, "nbd+unix", "nbds+unix", 1) + "&tls-hostname=localhost&" + parameters
}

// without returns a copy of a folder less some files.
func without(tb testing.TB, dir string, names ...string) string {
	tb.Helper()
	less := tb.TempDir()
	if err := os.CopyFS(less, os.DirFS(dir)); err != nil {
		tb.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(filepath.Join(less, n)); err != nil {
			tb.Fatal(err)
		}
	}
	return less
}

func trusting(dir string) string { return "tls-certificates=" + url.QueryEscape(dir) }

// Everything else is negotiated inside TLS, and a client that has its own
// configuration needs no files.
func TestClientTLS(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	config, dir := a.ServerConfig(), a.ClientDir("alice")
	uri := fakeServer(t, func(w *wire) {
		w.t = strictTB{t}
		w.upgrade(config)
		w.answer(w.readOption(), repAck) // extended headers
		w.admit(1<<20, rwFlags)
		w.read(extRequestSize)
		w.send(magicExtReply, chunkFlagDone, chunkOffsetData, uint64(1), uint64(4), uint64(8+5), uint64(4), "cairn")
		w.expect(magicExtRequest, uint16(0), cmdDisc, uint64(0), uint64(0), uint64(0))
		w.expectEnd()
	})
	for _, test := range []struct {
		uri string
		own *tls.Config
	}{
		{secured(uri, trusting(dir)), nil},
		{secured(uri, ""), a.ClientConfig("alice")},
	} {
		c, err := Dial(t.Context(), strings.TrimSuffix(test.uri, "&"), ClientOptions{TLS: test.own, Contexts: []string{ContextAllocation}})
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if err := c.ReadAt(t.Context(), b, 4); err != nil || string(b) != "cairn" {
			t.Errorf("%q, %v", b, err)
		}
		if v := c.current().all[0].nc.(*tls.Conn).ConnectionState().Version; v < tls.VersionTLS12 {
			t.Errorf("version %x", v)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A server that does not speak TLS as it should gets an error, and nothing that
// was meant for the inside.
func TestHostileServerTLS(t *testing.T) {
	a := tlstest.New(t)
	config, old, stranger := a.OpenConfig(), a.OpenConfig(), tlstest.New(t).OpenConfig()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	tests := []struct {
		name, want string
		talk       func(w *wire)
	}{
		{"no TLS", "has no TLS, which an nbds URI demands", func(w *wire) { w.greet(); w.answer(w.readOption(), repErrUnsup) }},
		{"not by policy", "the server refuses it: no certificate", func(w *wire) { w.greet(); w.answer(w.readOption(), repErrPolicy, "no certificate") }},
		{"not fixed newstyle", "too old for TLS", func(w *wire) { w.send("NBDMAGIC", "IHAVEOPT", uint16(2)); w.read(4) }},
		{"another answer", "answered STARTTLS with", func(w *wire) { w.greet(); w.answer(w.readOption(), repInfo) }},
		{"data with the agreement", "acknowledgement", func(w *wire) { w.greet(); w.answer(w.readOption(), repAck, "x") }},
		{"plain text behind the agreement", "plain text", func(w *wire) {
			w.greet()
			w.readOption()
			w.send(encode(magicOptReply, optStartTLS, repAck, uint32(0)), encode(magicOptReply, optExtendedHeaders, repAck, uint32(0)))
		}},
		{"plain text in the place of TLS", "does not look like a TLS handshake", func(w *wire) {
			w.greet()
			w.answer(w.readOption(), repAck)
			w.read(5)
			w.send(magicOptReply, optExtendedHeaders, repAck, uint32(0))
		}},
		{"hang up", "TLS: ", func(w *wire) { w.greet(); w.answer(w.readOption(), repAck) }},
		{"old TLS", "protocol version", func(w *wire) { w.upgrade(old) }},
		{"unknown authority", "unknown authority", func(w *wire) { w.upgrade(stranger) }},
		{"TLS required in TLS", "requires TLS", func(w *wire) { w.upgrade(config); w.answer(w.readOption(), repErrTLSReqd) }},
		{"hang up inside", "showed no certificate", func(w *wire) { w.upgrade(config); w.readOption() }},
	}
	dir := without(t, a.ClientDir("alice"), certFile, keyFile)
	noLeaks(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Dial(t.Context(), secured(fakeServer(t, test.talk), trusting(dir)), ClientOptions{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want something of %q", err, test.want)
			}
		})
	}
}

// A name that the server's certificate does not have is refused, unless the URI
// says not to look.
func TestClientTLSName(t *testing.T) {
	a := tlstest.New(t)
	config := a.OpenConfig()
	uri := fakeServer(t, func(w *wire) { w.upgrade(config); w.readOption(); w.answer(optList, repAck) })
	uri = strings.Replace(uri, "nbd+unix", "nbds+unix", 1) + "&" + trusting(a.ClientDir("alice"))
	if _, err := List(t.Context(), uri+"&tls-hostname=elsewhere"); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Error(err)
	}
	for _, how := range []string{"&tls-hostname=localhost", "&tls-verify-peer=0"} {
		if _, err := List(t.Context(), uri+how); err != nil {
			t.Error(how, err)
		}
	}
}

// A server that requires TLS is not talked to in plain text.
func TestPlainClientOfTLSServer(t *testing.T) {
	asked := make(chan uint32, 100)
	uri := fakeServer(t, func(w *wire) {
		w.greet()
		for {
			h := make([]byte, optionHeaderSize)
			if n, _ := w.nc.Read(h); n != len(h) {
				return
			}
			opt := uint32(h[11])
			asked <- opt
			w.answer(opt, repErrTLSReqd, "you must")
		}
	})
	_, err := Dial(t.Context(), uri, ClientOptions{Contexts: []string{ContextAllocation}})
	if err == nil || !strings.Contains(err.Error(), "use an nbds:// or nbds+unix:// URI: you must") || len(asked) != 1 {
		t.Error(err, asked)
	}
}

func TestClientCertificates(t *testing.T) {
	a := tlstest.New(t)
	dir := a.ClientDir("alice")
	open := without(t, dir)
	if err := os.Chmod(filepath.Join(open, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	mixed := without(t, dir, keyFile)
	if err := os.Link(filepath.Join(a.ClientDir("bob"), keyFile), filepath.Join(mixed, keyFile)); err != nil {
		t.Fatal(err)
	}
	huge := without(t, dir)
	if err := os.Truncate(filepath.Join(huge, caFile), maxPEM+1); err != nil {
		t.Fatal(err)
	}
	empty := without(t, dir)
	if err := os.Truncate(filepath.Join(empty, caFile), 0); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, dir, want string }{
		{"no folder", filepath.Join(dir, "none"), "no such file"},
		{"no authority", without(t, dir, caFile), "ca-cert.pem"},
		{"empty authority", empty, "holds no certificate"},
		{"huge authority", huge, "larger than"},
		{"no key", without(t, dir, keyFile), "client-key.pem"},
		{"key that everybody can read", open, "chmod o="},
		{"key of another", mixed, "private key does not match"},
	} {
		e := endpoint{tls: true, trust: trust{certificates: test.dir, hostname: "h"}}
		if _, err := e.clientTLS(nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want something of %q", test.name, err, test.want)
		}
	}
	e := endpoint{tls: true, trust: trust{certificates: without(t, dir, certFile, keyFile), hostname: "h"}}
	if c, err := e.clientTLS(nil); err != nil || len(c.Certificates) != 0 || c.RootCAs == nil || c.InsecureSkipVerify || c.ServerName != "h" {
		t.Error(c, err)
	}
	if _, err := e.clientTLS(&tls.Config{}); err == nil {
		t.Error("two sources of certificates")
	}
	own := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "mine"}
	if c, err := (&endpoint{tls: true, trust: trust{hostname: "h"}}).clientTLS(own); err != nil || c.ServerName != "mine" || c.MinVersion != tls.VersionTLS13 || c == own {
		t.Error(c, err)
	}
	if c, err := new(endpoint).clientTLS(own); err != nil || c != nil {
		t.Error("TLS for a URI that does not ask for it", err)
	}
}

// Neither a server that stops in the middle of TLS nor one that takes no goodbye
// keeps a client for longer than it allows.
func TestClientTLSBounded(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	config, dir := a.OpenConfig(), a.ClientDir("alice")
	release := make(chan struct{})
	uri := fakeServer(t, func(w *wire) { w.greet(); w.answer(w.readOption(), repAck); <-release })
	_, err := Dial(t.Context(), secured(uri, trusting(dir)), ClientOptions{DialTimeout: 30 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	uri = fakeServer(t, func(w *wire) {
		w.upgrade(config)
		w.answer(w.readOption(), repErrUnsup)
		w.answer(w.readOption(), repErrUnsup)
		w.readOption()
		w.answer(optGo, repInfo, infoExport, uint64(64<<20), rwFlags)
		w.answer(optGo, repAck)
		<-release // and reads no more
	})
	c, err := Dial(t.Context(), secured(uri, trusting(dir)), ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.WriteAt(ctx, make([]byte, 32<<20), 0, false) }()
	for len(c.current().all[0].writing) == 0 { // until it has begun
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	closed := make(chan error)
	go func() { closed <- c.Close() }()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	cancel()
	close(release)
}
