package nbd

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

// authority is a certificate authority that lives as long as a test.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	spec := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{tb: tb, key: newKey(tb)}
	der, err := x509.CreateCertificate(rand.Reader, spec, spec, &a.key.PublicKey, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
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

// issue returns a certificate for 127.0.0.1 and localhost, or for a client with
// the common name and a DNS name made from it.
func (a *authority) issue(name string, usage x509.ExtKeyUsage) tls.Certificate {
	a.tb.Helper()
	spec := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	if usage == x509.ExtKeyUsageServerAuth {
		spec.DNSNames, spec.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		spec.DNSNames = []string{name + ".example"}
	}
	key := newKey(a.tb)
	der, err := x509.CreateCertificate(rand.Reader, spec, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// server returns the configuration of a server that wants a certificate of this
// authority from its clients.
func (a *authority) server() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{a.issue("server", x509.ExtKeyUsageServerAuth)},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    a.pool(),
	}
}

// client returns the configuration of a client that has a name.
func (a *authority) client(name string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		ServerName:   "localhost",
		RootCAs:      a.pool(),
		Certificates: []tls.Certificate{a.issue(name, x509.ExtKeyUsageClientAuth)},
	}
}

// open returns the configuration of a server that lets anybody in.
func (a *authority) open() *tls.Config {
	c := a.server()
	c.ClientAuth = tls.NoClientCert
	return c
}

// clientDir writes a client's files under the names that libnbd and qemu expect.
func (a *authority) clientDir(name string) string {
	a.tb.Helper()
	return a.write("client", a.issue(name, x509.ExtKeyUsageClientAuth))
}

// serverDir is clientDir for a server.
func (a *authority) serverDir() string {
	a.tb.Helper()
	return a.write("server", a.issue("server", x509.ExtKeyUsageServerAuth))
}

func (a *authority) write(who string, cert tls.Certificate) string {
	a.tb.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		a.tb.Fatal(err)
	}
	dir := a.tb.TempDir()
	for file, block := range map[string]pem.Block{
		"ca-cert.pem":     {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		who + "-cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		who + "-key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&block), 0o600); err != nil {
			a.tb.Fatal(err)
		}
	}
	return dir
}
