package main

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// move puts a file in the place of another, as programs that renew certificates do.
func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// A certificate that is replaced is served from the next look on, without a restart. A
// new one that is not whole, or not that of the key beside it, is said once and is not.
func TestCertificateIsReadAgain(t *testing.T) {
	cert, key, _ := certificate(t)
	var log bytes.Buffer
	p, err := newKeyPair("certificate", cert, key, 0, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	plain, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := tls.NewListener(plain, &tls.Config{GetCertificate: p.forHandshake, MinVersion: tls.VersionTLS12})
	defer l.Close()
	// served is the certificate that a client is shown.
	served := func() []byte {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			c, aerr := l.Accept()
			if aerr == nil {
				aerr = c.(*tls.Conn).HandshakeContext(t.Context()) //nolint:forcetypeassert // tls.NewListener has no others
				_ = c.Close()
			}
			done <- aerr
		}()
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}
		c, derr := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if derr != nil {
			t.Fatal(derr)
		}
		defer c.Close()
		if derr = <-done; derr != nil {
			t.Fatal(derr)
		}
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw //nolint:forcetypeassert // as it was dialed
	}
	shows := func(what string, want []byte) {
		t.Helper()
		if !bytes.Equal(served(), want) {
			t.Fatalf("%s: another certificate is served", what)
		}
	}
	said := func(what string, failures, reads int) {
		t.Helper()
		if f, r := strings.Count(log.String(), "cannot be used"), strings.Count(log.String(), "is used from now on"); f != failures || r != reads {
			t.Fatalf("%s: %d failures and %d reads are logged, want %d and %d:\n%s", what, f, r, failures, reads, log.String())
		}
	}
	first := served()
	shows("nothing changed", first)
	said("nothing changed", 0, 0)

	newCert, newKey, _ := certificate(t)
	move(t, newCert, cert)
	shows("only the certificate is new", first)
	shows("only the certificate is new", first)
	said("only the certificate is new", 1, 0)
	move(t, newKey, key)
	second := served()
	if bytes.Equal(first, second) {
		t.Fatal("the new pair is not served")
	}
	said("both are new", 1, 1)

	whole, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(cert, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		shows("half a certificate", second)
	}
	said("half a certificate", 2, 1)
	if err = os.Remove(key); err != nil {
		t.Fatal(err)
	}
	shows("no key", second)
	shows("no key", second)
	said("no key", 3, 1)
	newCert, newKey, _ = certificate(t)
	move(t, newCert, cert)
	move(t, newKey, key)
	if third := served(); bytes.Equal(third, second) {
		t.Fatal("the third pair is not served")
	}
	said("whole again", 3, 2)
}

// Between two looks the files are left alone.
func TestCertificateIsNotReadTooOften(t *testing.T) {
	cert, key, _ := certificate(t)
	p, err := newKeyPair("certificate", cert, key, time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	newCert, newKey, _ := certificate(t)
	move(t, newCert, cert)
	move(t, newKey, key)
	was := p.get(t.Context())
	if p.get(t.Context()) != was {
		t.Error("another certificate before its time")
	}
	p.looked = time.Now().Add(-2 * time.Hour)
	if p.get(t.Context()) == was {
		t.Error("the old certificate behind its time")
	}
}
