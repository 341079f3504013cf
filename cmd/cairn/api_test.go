package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificate writes a certificate for 127.0.0.1 and its key, and returns who trusts it.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spec := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, spec, spec, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key, pool = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()
	whole := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(whole)
	for name, data := range map[string][]byte{cert: whole, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key, pool
}

// With a certificate the address of the API speaks TLS and nothing else.
func TestAPIOverTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	s := &agentSettings{State: t.TempDir(), APIListen: "127.0.0.1:0", APICert: cert, APIKey: key, NoAuth: true}
	a, err := s.api(t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Listener.Close()
	answered := make(chan error, 2)
	go func() {
		for range 2 {
			c, aerr := a.Listener.Accept()
			if aerr == nil {
				_, aerr = c.Write([]byte("hello"))
				_ = c.Close()
			}
			answered <- aerr
		}
	}()
	dial := func(conf *tls.Config) error {
		d := tls.Dialer{Config: conf}
		c, derr := d.DialContext(t.Context(), "tcp", a.Listener.Addr().String())
		if derr != nil {
			return derr
		}
		defer c.Close()
		_, derr = c.Read(make([]byte, 5))
		return derr
	}
	if err = dial(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}); err != nil {
		t.Errorf("a client that trusts the certificate: %v", err)
	}
	if err = <-answered; err != nil {
		t.Errorf("the server: %v", err)
	}
	if err = dial(&tls.Config{MinVersion: tls.VersionTLS12}); err == nil {
		t.Error("a client that does not trust it got an answer")
	}
	if err = <-answered; err == nil {
		t.Error("the server took its connection for a good one")
	}
}
