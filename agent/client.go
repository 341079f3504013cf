package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cairnbackup/cairn/internal/unixhttp"
)

// Client speaks the agent's HTTP interface on its unix socket. It is safe for
// concurrent use. Its errors are *[Error] (the agent refused: the text is a
// sentence for the operator), wrap [ErrUnreachable], or are the context's.
type Client struct {
	http *unixhttp.Client
	repo string // name; empty = the default
}

// NewClient returns a client of the agent's socket at path. It connects when
// it is first used, and again whenever the agent was restarted.
func NewClient(socket string) *Client {
	return &Client{http: unixhttp.New(unixhttp.Server{
		Socket: socket, Name: "agent", Idle: idleTimeout, Refusal: decodeRefusal,
		Unreachable: ErrUnreachable, Hint: "is cairn agent running, and may this user connect to it?",
	})}
}

// Repository returns a client for another of the agent's repositories, by its name.
// Volumes and snapshots are the same for all. It shares the connections of c.
func (c *Client) Repository(name string) *Client { return &Client{http: c.http, repo: name} }

// path adds which repository is meant.
func (c *Client) path(p string) string {
	switch {
	case c.repo == "":
		return p
	case strings.Contains(p, "?"):
		return p + "&" + repoParameter + "=" + url.QueryEscape(c.repo)
	default:
		return p + "?" + repoParameter + "=" + url.QueryEscape(c.repo)
	}
}

// Close closes idle connections. The client may still be used.
func (c *Client) Close() { c.http.Close() }

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
	return ask[Job](ctx, c, http.MethodGet, "/v1/jobs/"+unixhttp.Segment(ref), nil)
}

// CancelJob asks a job to stop and returns it as it is then, which may still
// be running: [Client.WaitJob] tells the end. A backup that is committing ends
// as it would have. A job that has ended is refused (ErrConflict).
func (c *Client) CancelJob(ctx context.Context, ref string) (Job, error) {
	return ask[Job](ctx, c, http.MethodPost, "/v1/jobs/"+unixhttp.Segment(ref)+"/cancel", nil)
}

// WaitJob returns a job when it has ended, whatever its end. fn, which may be
// nil, is called in the caller's goroutine with each report of progress,
// several a second, and with the end. Ending ctx leaves the job alone.
func (c *Client) WaitJob(ctx context.Context, ref string, fn func(Job)) (Job, error) {
	var last Job
	resp, err := c.http.Send(ctx, http.MethodGet, c.path("/v1/jobs/"+unixhttp.Segment(ref)+"/wait"), nil)
	if err != nil {
		return last, err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for !last.State.Final() {
		var j Job
		if err := dec.Decode(&j); err != nil {
			return last, c.http.Lost(ctx, fmt.Errorf("the agent went away while job %s was waited for: %w", ref, err))
		}
		last = j
		if fn != nil {
			fn(j)
		}
	}
	return last, nil
}

// ask sends one request and decodes its answer.
func ask[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	err := c.http.Do(ctx, method, c.path(path), in, &out)
	return out, err
}

// decodeRefusal makes an *[Error] of an answer that is no success.
func decodeRefusal(status int, body []byte) error {
	var e Error
	if err := json.Unmarshal(body, &e); err != nil || e.Code == "" || e.Text == "" {
		return refuse(CodeInternal, "the agent answered HTTP %d without saying why: is the socket another program's?", status)
	}
	return &e
}
