package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// Files in a folder of certificates, named as libnbd and qemu name them.
const (
	caFile   = "ca-cert.pem"
	certFile = "client-cert.pem"
	keyFile  = "client-key.pem"
	// maxPEM bounds each of them.
	maxPEM = 1 << 20
)

// clientTLS returns how to speak TLS with an endpoint, nil for not at all. A
// configuration of the caller's own takes the place of the URI's certificates.
func (e *endpoint) clientTLS(own *tls.Config) (*tls.Config, error) {
	if !e.tls {
		return nil, nil //nolint:nilnil // no TLS is no configuration
	}
	c := new(tls.Config)
	if own != nil {
		if e.trust.certificates != "" || e.trust.unverified {
			return nil, errors.New("the URI and the program both say which certificates to use: leave tls-certificates and tls-verify-peer out")
		}
		c = own.Clone()
	} else if err := e.trust.load(c); err != nil {
		return nil, err
	}
	c.ServerName = cmp.Or(c.ServerName, e.trust.hostname)
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	// Records that begin small are for browsers; here they only cost calls.
	c.DynamicRecordSizingDisabled = true
	return c, nil
}

// load reads the certificates into c.
func (t *trust) load(c *tls.Config) error {
	c.InsecureSkipVerify = t.unverified
	if t.certificates == "" {
		return nil
	}
	ca, err := readPEM(filepath.Join(t.certificates, caFile))
	switch {
	case err == nil:
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return fmt.Errorf("%s holds no certificate", filepath.Join(t.certificates, caFile))
		}
	case !t.unverified || !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the authority that vouches for the server: %w", err)
	}
	cert, err := readPEM(filepath.Join(t.certificates, certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not every server wants one
	}
	if err != nil {
		return fmt.Errorf("this client's certificate: %w", err)
	}
	key, err := readKey(filepath.Join(t.certificates, keyFile))
	if err != nil {
		return fmt.Errorf("this client's key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s and %s in %s: %w", certFile, keyFile, t.certificates, err)
	}
	c.Certificates = []tls.Certificate{pair}
	return nil
}

// readPEM reads a small file.
func readPEM(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(f)
	return readSmall(f)
}

// readKey is readPEM for a secret. As ssh and libpq do it, but leaving groups
// alone as Debian's ssl-cert needs them, one that everybody can read is refused.
func readKey(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(f)
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s is open to every user of this machine: chmod o= it", name)
	}
	return readSmall(f)
}

func readSmall(f *os.File) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(b) > maxPEM {
		err = fmt.Errorf("%s is larger than %d bytes", f.Name(), maxPEM)
	}
	return b, err
}

// startTLS upgrades the connection. It is the first option: nobody on the way
// may have had a say in any other.
func (g *greeter) startTLS(ctx context.Context, c *tls.Config) error {
	if !g.fixed {
		return errors.New("the server is too old for TLS: upgrade it, or use an nbd URI if nobody is on the way to it")
	}
	err := g.ask(optStartTLS, nil, func(rep uint32, _ []byte) error {
		return fmt.Errorf("the server answered STARTTLS with %#x", rep)
	})
	if refused(err) != nil {
		return fmt.Errorf("the server has no TLS, which an nbds URI demands (%w)", err)
	}
	if err != nil {
		return err
	}
	if g.in.buffered() > 0 {
		return errors.New("the server sent plain text behind its agreement to TLS")
	}
	nc := tls.Client(g.in.nc, c)
	if err := nc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", midway(err))
	}
	g.in.nc = nc
	return nil
}

// explainTLS adds to a connection that ended over TLS what the user can do about
// it: with TLS 1.3 a server that refuses our certificate, or misses one, lets the
// handshake succeed and hangs up after it.
func explainTLS(err error, c *tls.Config) error {
	op, ok := errors.AsType[*net.OpError](err)
	if c == nil || (!ok || op.Op != "remote error") && !disconnected(err) {
		return err
	}
	if len(c.Certificates) == 0 && c.GetClientCertificate == nil {
		return fmt.Errorf("%w (this client showed no certificate: if the server wants one, give tls-certificates=DIR with %s and %s)",
			err, certFile, keyFile)
	}
	return fmt.Errorf("%w (perhaps the server does not accept this client's certificate)", err)
}
