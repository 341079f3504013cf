// Package unixhttp is the client's side of HTTP and JSON on a unix socket, which
// the agent and the data plane both speak. What they are asked, and what their
// refusals mean, is theirs.
package unixhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxAnswer caps what is read of one answer: 4096 volumes with their checkpoints
// fit several times.
const maxAnswer = 64 << 20

// Server is who answers on a socket.
type Server struct {
	Socket string        // path
	Name   string        // "agent"
	Idle   time.Duration // after which it closes a connection

	// Refusal makes an error of an answer that is no success.
	Refusal func(status int, body []byte) error
	// Unreachable is wrapped by the errors of requests that got no answer, and
	// Hint says what to look at then.
	Unreachable error
	Hint        string
}

// Client sends requests to a server. It connects when it is first used, and again
// whenever the server was restarted. It is safe for concurrent use. Its errors are
// what Refusal made, wrap Unreachable, or are the context's.
type Client struct {
	s    Server
	http *http.Client
}

// New returns a client of a server.
func New(s Server) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.Socket)
	}
	return &Client{s: s, http: &http.Client{Transport: &http.Transport{
		DialContext:         dial,
		MaxIdleConnsPerHost: 2,
		// Shorter than the server's, so that a connection is never reused just
		// as the server closes it.
		IdleConnTimeout: s.Idle / 2,
	}}}
}

// Close closes idle connections. The client may still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Do sends a request with in as its body, unless that is nil, and decodes the
// answer, if there is one, into out, unless that is nil.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.Send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.Lost(ctx, err)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer of %s: %w", c.s.Name, err)
	}
	return nil
}

// Send sends a request and returns the answer, a success, as it begins to come.
// The caller closes its body.
func (c *Client) Send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request to %s: %w", c.s.Name, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://cairn"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make request to %s: %w", c.s.Name, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.Lost(ctx, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.Lost(ctx, err)
	}
	return nil, c.s.Refusal(resp.StatusCode, b)
}

// Lost explains an answer that did not come, or not to its end.
func (c *Client) Lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ask %s: %w", c.s.Name, context.Cause(ctx))
	}
	// The method and the made-up URL around the cause say nothing.
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	return fmt.Errorf("%w on %s: %s (%w)", c.s.Unreachable, c.s.Socket, c.s.Hint, err)
}

// Segment makes one segment of a path of anything. One of dots alone would
// vanish from the path; the empty one becomes something that nothing is called.
func Segment(ref string) string {
	switch {
	case ref == "":
		return url.PathEscape(`""`)
	case strings.Trim(ref, ".") == "":
		return strings.ReplaceAll(ref, ".", "%2E")
	}
	return url.PathEscape(ref)
}
