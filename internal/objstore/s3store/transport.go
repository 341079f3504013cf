package s3store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// How long a server may take for what, and what it may send unasked.
const (
	dialTime    = 5 * time.Second
	tlsTime     = 10 * time.Second
	headerTime  = 30 * time.Second // from the end of the request to the answer
	stallTime   = time.Minute      // without a byte in either direction
	maxHeader   = 256 << 10
	maxDocument = 8 << 20 // a page of a listing: 1000 keys of up to 1 KiB, escaped
	maxConns    = 32      // of one store
	idleConns   = 16
)

// errNoS3: what answers is no S3 server.
var errNoS3 = errors.New("what answers there does not speak S3")

// errLongAnswer: a document that is larger than any S3 server sends.
var errLongAnswer = errors.New("the answer is too long")

// transport returns an HTTP transport that bounds what a server can cost.
// roots = nil are the system's authorities.
func transport(roots *x509.CertPool) *http.Transport {
	d := &net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err //nolint:wrapcheck // it names the address
			}
			return stallConn{c}, nil
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    tlsTime,
		ResponseHeaderTimeout:  headerTime,
		IdleConnTimeout:        stallTime / 2,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    idleConns,
		MaxResponseHeaderBytes: maxHeader,
		WriteBufferSize:        32 << 10,
		DisableCompression:     true, // sizes and ranges are those of the object
	}
}

// authorities reads the certificates of a PEM file.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // the system's
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the certificates that ca= names: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca=%s holds no certificate: it has to be a PEM file: %w", file, ErrURL)
	}
	return pool, nil
}

// stallConn is a connection that ends when nothing moves any more: TCP alone
// would wait a quarter of an hour for a peer that vanished.
type stallConn struct{ net.Conn }

func (c stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(stallTime)); err != nil {
		return 0, err //nolint:wrapcheck // the caller is net/http
	}
	return c.Conn.Read(p) //nolint:wrapcheck // as above
}

func (c stallConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(stallTime)); err != nil {
		return 0, err //nolint:wrapcheck // as above
	}
	return c.Conn.Write(p) //nolint:wrapcheck // as above
}

// op is one operation of a store, whatever requests it takes. It travels in
// their context.
type op struct {
	sent atomic.Bool // a connection was had: a server may have seen something
	body *payload    // of a Put
	long bool        // a successful answer is an object, whose reader bounds it
	list bool        // a successful answer is a listing
}

type opKey struct{}

func (o *op) in(ctx context.Context) context.Context {
	ctx = context.WithValue(ctx, opKey{}, o)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { o.sent.Store(true) }})
}

// bounded reads no more of an answer than it can honestly have.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	o, _ := req.Context().Value(opKey{}).(*op)
	if o != nil && o.body != nil && req.Body != nil {
		// A connection that was closed while it was idle is found out before
		// anything was written: only then net/http asks for the body again.
		req.GetBody = func() (io.ReadCloser, error) { return o.body.reader(), nil }
	}
	res, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller is net/http
	}
	ok := res.StatusCode < 300
	if o != nil && o.long && ok {
		return res, nil
	}
	res.Body = &limited{ReadCloser: res.Body, left: maxDocument}
	if o != nil && ok && req.Method == http.MethodDelete && res.StatusCode != http.StatusNoContent {
		return nil, errors.Join(errNoS3, res.Body.Close())
	}
	if o != nil && o.list && ok && req.URL.Query().Has("list-type") {
		return listing(res)
	}
	if o != nil && res.StatusCode == http.StatusNotFound && req.Method != http.MethodHead {
		return genuine(res)
	}
	return res, nil
}

// genuine refuses a 404 that is not an S3 server's: that of a proxy, or of a
// server which knows nothing of the bucket, says nothing about an object.
func genuine(res *http.Response) (*http.Response, error) {
	const room = 64 << 10
	doc, err := io.ReadAll(io.LimitReader(res.Body, room))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if !bytes.Contains(doc, []byte("<Code>")) {
		return nil, errNoS3
	}
	res.Body = io.NopCloser(bytes.NewReader(doc))
	return res, nil
}

// listing refuses an answer that is none, such as a page of a proxy: read
// leniently it would be an empty bucket.
func listing(res *http.Response) (*http.Response, error) {
	r := bufio.NewReaderSize(res.Body, 1024)
	head, err := r.Peek(1024)
	if err != nil && !errors.Is(err, io.EOF) || !bytes.Contains(head, []byte("<ListBucketResult")) {
		return nil, errors.Join(errNoS3, res.Body.Close())
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{r, res.Body}
	return res, nil
}

// limited fails where io.LimitReader would pretend that the answer ended.
type limited struct {
	io.ReadCloser

	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, errLongAnswer
	}
	n, err := l.ReadCloser.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err //nolint:wrapcheck // EOF has to stay what it is
}

// payload is the body of a Put, which is the caller's again when Put returns:
// net/http may go on reading behind an answer that came early.
type payload struct {
	mu   sync.Mutex
	body []byte
	over bool
}

var errOver = errors.New("the request is over")

// end takes the body back.
func (p *payload) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.body, p.over = nil, true
}

func (p *payload) reader() io.ReadCloser { return io.NopCloser(&payloadReader{of: p}) }

type payloadReader struct {
	of  *payload
	off int
}

func (r *payloadReader) Read(b []byte) (int, error) {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.of.over {
		return 0, errOver
	}
	if r.off == len(r.of.body) {
		return 0, io.EOF
	}
	n := copy(b, r.of.body[r.off:])
	r.off += n
	return n, nil
}
