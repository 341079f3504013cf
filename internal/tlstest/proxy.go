package tlstest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// Proxy lets NBD clients that do not speak TLS, or cannot choose their address, reach a
// server that asks for it: it returns a unix socket, each connection to which becomes one
// to addr, from the IP address from, that has shown the certificate in conf.
func Proxy(tb testing.TB, addr, from string, conf *tls.Config) (socket string) {
	tb.Helper()
	socket = filepath.Join(tb.TempDir(), "p")
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		_ = l.Close() // ends Accept
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { forward(ctx, in, addr, from, conf) })
		}
	})
	return socket
}

// forward ends with either side or ctx. What fails the client notices.
func forward(ctx context.Context, in net.Conn, addr, from string, conf *tls.Config) {
	defer in.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	out, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = in.Close()  // wakes whoever waits for it
		_ = out.Close() // as above
	})
	defer stop()
	greeting, err := startTLS(out)
	if err != nil {
		return
	}
	secret := tls.Client(out, conf)
	if err = secret.HandshakeContext(ctx); err != nil {
		return
	}
	if _, err = in.Write(greeting); err != nil {
		return
	}
	if _, err = io.ReadFull(in, make([]byte, 4)); err != nil { // its flags, which the server has from us
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(secret, in) // its end is the client's
		_ = out.Close()
	}()
	_, _ = io.Copy(in, secret) // its end is the server's
	_ = in.Close()
	<-done
}

// startTLS shakes hands up to TLS, and returns the server's greeting.
func startTLS(c net.Conn) (greeting []byte, err error) {
	greeting = make([]byte, 18)
	if _, err = io.ReadFull(c, greeting); err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00"...)
	if _, err = c.Write(b); err != nil {
		return nil, err
	}
	reply := make([]byte, 20)
	if _, err = io.ReadFull(c, reply); err != nil {
		return nil, err
	}
	if !bytes.Equal(reply[12:], []byte{0, 0, 0, 1, 0, 0, 0, 0}) {
		return nil, fmt.Errorf("STARTTLS is answered %x", reply)
	}
	return greeting, nil
}
