package agent

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
	"strconv"
	"strings"
)

// maxAnswer caps what the client reads of one answer.
const maxAnswer = 64 << 20

// Client speaks the agent's HTTP interface on its unix socket. It is safe for
// concurrent use. Its errors are *[Error] (the agent refused: the text is a
// sentence for the operator), wrap [ErrUnreachable], or are the context's.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the agent's socket at path. It connects when
// it is first used, and again whenever the agent was restarted.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext:         dial,
		MaxIdleConnsPerHost: 2,
		// Shorter than the server's, so that a connection is never reused
		// just as the server closes it.
		IdleConnTimeout: idleTimeout / 2,
	}}}
}

// Close closes idle connections. The client may still be used.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the state of the agent, of the data plane and of the stores.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Jobs returns the newest jobs, oldest first; limit 0 = a hundred.
func (c *Client) Jobs(ctx context.Context, limit int) ([]Job, error) {
	return ask[[]Job](ctx, c, http.MethodGet, "/v1/jobs?limit="+strconv.Itoa(limit), nil)
}

// Job returns a job. ref is its ID, or enough of its beginning to be the only one.
func (c *Client) Job(ctx context.Context, ref string) (Job, error) {
	return ask[Job](ctx, c, http.MethodGet, "/v1/jobs/"+segment(ref), nil)
}

// CancelJob asks a job to stop and returns it as it is then, which may still
// be running: [Client.WaitJob] tells the end. A backup that is committing ends
// as it would have. A job that has ended is refused (ErrConflict).
func (c *Client) CancelJob(ctx context.Context, ref string) (Job, error) {
	return ask[Job](ctx, c, http.MethodPost, "/v1/jobs/"+segment(ref)+"/cancel", nil)
}

// WaitJob returns a job when it has ended, whatever its end. fn, which may be
// nil, is called in the caller's goroutine with each report of progress,
// several a second, and with the end. Ending ctx leaves the job alone.
func (c *Client) WaitJob(ctx context.Context, ref string, fn func(Job)) (Job, error) {
	var last Job
	resp, err := c.send(ctx, http.MethodGet, "/v1/jobs/"+segment(ref)+"/wait", nil)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for !last.State.Final() {
		var j Job
		if err := dec.Decode(&j); err != nil {
			return last, c.unreachable(ctx, fmt.Errorf("the agent went away while job %s was waited for: %w", ref, err))
		}
		last = j
		if fn != nil {
			fn(j)
		}
	}
	return last, nil
}

// segment makes one segment of a path of anything. One of dots alone would
// vanish from the path, and the request with it go elsewhere.
func segment(ref string) string {
	if strings.Trim(ref, ".") == "" {
		return strings.ReplaceAll(ref, ".", "%2E")
	}
	return url.PathEscape(ref)
}

// ask sends one request and decodes its answer.
func ask[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, c.unreachable(ctx, err)
	}
	if len(b) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("decode answer of agent: %w", err)
	}
	return out, nil
}

// send sends one request; in may be nil. On nil the caller closes the body.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode request to agent: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://cairn"+path, body)
	if err != nil {
		return nil, refuse(CodeInvalid, "the request cannot be made: %v", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	var e Error
	if err := json.Unmarshal(b, &e); err != nil || e.Code == "" || e.Text == "" {
		return nil, refuse(CodeInternal, "the agent answered HTTP %d without saying why: is the socket %s another program's?", resp.StatusCode, c.socket)
	}
	return nil, &e
}

// unreachable explains a request that got no answer.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ask agent: %w", context.Cause(ctx))
	}
	// The method and the made-up URL around the cause say nothing.
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	return fmt.Errorf("%w on %s: is cairn agent running, and may this user connect to it? (%w)", ErrUnreachable, c.socket, err)
}
