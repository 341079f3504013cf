// Package tlstest is a certificate authority for tests.
package tlstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Names of the files in the folders that an Authority writes: those that libnbd and
// qemu look for.
const (
	CA         = "ca-cert.pem"
	ServerCert = "server-cert.pem"
	ServerKey  = "server-key.pem"
	ClientCert = "client-cert.pem"
	ClientKey  = "client-key.pem"
)

// Authority issues certificates as long as a test runs.
type Authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority.
func New(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb, key: newKey(tb)}
	spec := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, spec, spec, &a.key.PublicKey, a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Server returns a new certificate for localhost and 127.0.0.1.
func (a *Authority) Server() tls.Certificate {
	a.tb.Helper()
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Client returns a new certificate with this common name, and a DNS name made from it,
// that ends at a time.
func (a *Authority) Client(name string, end time.Time) tls.Certificate {
	a.tb.Helper()
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotAfter: end, DNSNames: []string{name + ".example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *Authority) issue(spec *x509.Certificate) tls.Certificate {
	a.tb.Helper()
	spec.SerialNumber, spec.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-2*time.Hour)
	spec.BasicConstraintsValid, spec.KeyUsage = true, x509.KeyUsageDigitalSignature
	key := newKey(a.tb)
	der, err := x509.CreateCertificate(rand.Reader, spec, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Pool is the authority, as those who trust it have it.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// ServerConfig is that of a server which asks for the authority's certificates.
func (a *Authority) ServerConfig() *tls.Config {
	a.tb.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{a.Server()},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool(),
	}
}

// OpenConfig is that of a server which lets anybody in.
func (a *Authority) OpenConfig() *tls.Config {
	c := a.ServerConfig()
	c.ClientAuth = tls.NoClientCert
	return c
}

// ClientConfig is that of a client with this common name.
func (a *Authority) ClientConfig(name string) *tls.Config {
	a.tb.Helper()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: "localhost", RootCAs: a.Pool(),
		Certificates: []tls.Certificate{a.Client(name, time.Now().Add(time.Hour))},
	}
}

// WriteServer writes the files of a server into a folder.
func (a *Authority) WriteServer(dir string) {
	a.tb.Helper()
	a.write(dir, ServerCert, ServerKey, a.Server())
}

// WriteClient writes the files of a client.
func (a *Authority) WriteClient(dir string, cert tls.Certificate) {
	a.tb.Helper()
	a.write(dir, ClientCert, ClientKey, cert)
}

// ServerDir returns a new folder with the files of a server.
func (a *Authority) ServerDir() string {
	a.tb.Helper()
	dir := a.tb.TempDir()
	a.WriteServer(dir)
	return dir
}

// ClientDir returns a new folder with the files of a client of this common name.
func (a *Authority) ClientDir(name string) string {
	a.tb.Helper()
	dir := a.tb.TempDir()
	a.WriteClient(dir, a.Client(name, time.Now().Add(time.Hour)))
	return dir
}

// write puts a certificate, its key and the authority into a folder, each in the
// place of what was there at once, as programs that renew certificates do.
func (a *Authority) write(dir, certFile, keyFile string, cert tls.Certificate) {
	a.tb.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		a.tb.Fatal(err)
	}
	for file, block := range map[string]pem.Block{
		CA:       {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: key},
	} {
		name := filepath.Join(dir, file)
		err := os.WriteFile(name+".new", pem.EncodeToMemory(&block), 0o600) //nolint:forbidigo // of a test
		if err == nil {
			err = os.Rename(name+".new", name)
		}
		if err != nil {
			a.tb.Fatal(err)
		}
	}
}
