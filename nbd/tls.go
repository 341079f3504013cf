package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"
)

// goodbyeTime is how long a client may keep the server from telling it that a
// TLS connection ends.
const goodbyeTime = time.Second

// serverTLS returns c as the server uses it, whichever configuration c then picks for
// a client.
func serverTLS(c *tls.Config) *tls.Config {
	c = hardened(c)
	if pick := c.GetConfigForClient; pick != nil {
		c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			picked, err := pick(h)
			if err != nil || picked == nil {
				return nil, err
			}
			return hardened(picked), nil
		}
	}
	return c
}

func hardened(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	// A session that is taken up again goes by the authorities of its first time.
	// Connections last, so there is little to be saved.
	c.SessionTicketsDisabled = true
	// Records that begin small are for browsers; here they only cost calls.
	c.DynamicRecordSizingDisabled = true
	return c
}

// encrypted reports whether the connection has been upgraded.
func (c *conn) encrypted() bool { return c.nc != c.socket }

// mustEncrypt reports whether an option cannot be answered before STARTTLS.
func (c *conn) mustEncrypt(opt uint32) bool {
	return c.s.o.TLS != nil && !c.encrypted() && opt != optStartTLS && opt != optAbort
}

// startTLS answers STARTTLS. After an acknowledgement there is no way back: what
// fails then ends the connection.
func (c *conn) startTLS(ctx context.Context, data []byte) error {
	switch {
	case c.s.o.TLS == nil:
		c.refuse(optStartTLS, repErrPolicy, "this server has no certificate for TLS")
		return nil
	case c.encrypted():
		c.refuse(optStartTLS, repErrInvalid, "TLS is on already")
		return nil
	case len(data) != 0:
		c.refuse(optStartTLS, repErrInvalid, "STARTTLS takes no data")
		return nil
	case c.in.buffered() > 0:
		// Anybody on the way could have added this, and it would be taken for the
		// client's own word from inside TLS.
		return errors.New("nbd: client sent more in plain text behind STARTTLS")
	}
	c.reply(optStartTLS, repAck, nil)
	if err := c.send(); err != nil {
		return err
	}
	nc := tls.Server(c.socket, c.s.o.TLS)
	if err := nc.HandshakeContext(ctx); err != nil { // the deadline of the handshake goes on
		return fmt.Errorf("nbd: TLS handshake: %w", err)
	}
	c.nc, c.in.nc = nc, nc
	c.chosen = chosen{}
	if chains := nc.ConnectionState().VerifiedChains; len(chains) > 0 {
		leaf := chains[0][0]
		c.peer.CommonName, c.peer.DNSNames = leaf.Subject.CommonName, slices.Clone(leaf.DNSNames)
	}
	return nil
}

// sayGoodbye ends TLS in order, as far as the client lets it, so that it can tell
// this end from one that somebody else made.
func (c *conn) sayGoodbye() {
	if !c.encrypted() {
		return
	}
	hangUp := time.AfterFunc(goodbyeTime, func() { closeQuietly(c.socket) })
	defer hangUp.Stop()
	closeQuietly(c.nc)
}
