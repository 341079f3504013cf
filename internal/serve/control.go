package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of the control socket.
const (
	maxBody         = 256 << 10 // of a request
	maxHeader       = 16 << 10
	maxControlConns = 64
	headerTimeout   = 10 * time.Second
	bodyTimeout     = 10 * time.Second
	answerTimeout   = 30 * time.Second // to take an answer, once it is made
)

// releasePattern is that of the request by which a reader says how far it is. It comes
// again and again as long as a backup runs, so that the log shows it, done or refused,
// only to who debugs.
const releasePattern = "POST /v1/snapshots/{ref}/release"

// endpoint answers one request: a value to send as JSON (nil: nothing), or
// an error.
type endpoint func(r *http.Request) (any, error)

// controller answers the control API for a plane.
type controller struct {
	p   *plane
	log *slog.Logger
}

// handler returns the whole API. CONTROL.md describes it.
func (c *controller) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]endpoint{
		"GET /v1/status":                              c.status,
		"GET /v1/volumes":                             c.volumes,
		"POST /v1/volumes":                            c.createVolume,
		"GET /v1/volumes/{ref}":                       c.volume,
		"DELETE /v1/volumes/{ref}":                    c.deleteVolume,
		"POST /v1/volumes/{ref}/extend":               c.extendVolume,
		"PUT /v1/volumes/{ref}/attributes":            c.setAttributes,
		"POST /v1/volumes/{ref}/reopen":               c.reopenVolume,
		"POST /v1/volumes/{ref}/checkpoints":          c.createCheckpoint,
		"DELETE /v1/volumes/{ref}/checkpoints/{name}": c.dropCheckpoint,
		"GET /v1/snapshots":                           c.snapshots,
		"POST /v1/snapshots":                          c.createSnapshots,
		"GET /v1/snapshots/{ref}":                     c.snapshot,
		"DELETE /v1/snapshots/{ref}":                  c.deleteSnapshot,
		"POST /v1/snapshots/{ref}/revert":             c.revertVolume,
		"POST /v1/snapshots/{ref}/checkpoints":        c.aliasCheckpoint,
		releasePattern:                                c.releaseSnapshot,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { c.answer(w, r, h) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, r, func(r *http.Request) (any, error) {
			return nil, refuse(CodeNotFound, "the data plane knows no request %s %q: bring it and its client to one version", clip(r.Method), clip(r.URL.Path))
		})
	})
	return mux
}

// answer runs one endpoint and sends what it returned.
func (c *controller) answer(w http.ResponseWriter, r *http.Request, h endpoint) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		c.log.LogAttrs(r.Context(), slog.LevelWarn, "control deadline not set", slog.Any("error", err))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		err = bodyError(err)
	}
	// The endpoint may take long (a revert copies data), and its context ends
	// when the client hangs up, which a read deadline would look like.
	if e := rc.SetReadDeadline(time.Time{}); e != nil && !errors.Is(e, http.ErrNotSupported) {
		c.log.LogAttrs(r.Context(), slog.LevelWarn, "control deadline not cleared", slog.Any("error", e))
	}
	var v any
	if err == nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		v, err = h(r)
	}
	status := http.StatusOK
	if err != nil {
		e := refusal(err)
		status, v = httpStatus(e.Code), e
		c.logRefusal(r, e)
	} else if r.Method != http.MethodGet {
		level := slog.LevelInfo
		if r.Pattern == releasePattern {
			level = slog.LevelDebug
		}
		c.log.LogAttrs(r.Context(), level, "control request done", slog.String("method", r.Method), slog.String("path", clip(r.URL.Path)))
	}
	if v == nil {
		status = http.StatusNoContent
	}
	c.send(w, r, status, v)
}

func (c *controller) logRefusal(r *http.Request, e *Error) {
	level := slog.LevelInfo
	if e.Code == CodeInternal {
		level = slog.LevelError
	}
	if (r.Method == http.MethodGet || r.Pattern == releasePattern) && e.Code != CodeInternal {
		level = slog.LevelDebug
	}
	c.log.LogAttrs(r.Context(), level, "control request refused", slog.String("method", r.Method),
		slog.String("path", clip(r.URL.Path)), slog.String("code", string(e.Code)), slog.String("error", e.Text))
}

// send writes an answer; a client that is gone does not matter.
func (c *controller) send(w http.ResponseWriter, r *http.Request, status int, v any) {
	rc := http.NewResponseController(w)
	if err := rc.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		c.log.LogAttrs(r.Context(), slog.LevelWarn, "control deadline not set", slog.Any("error", err))
	}
	if v == nil {
		w.WriteHeader(status)
		return
	}
	b, err := json.Marshal(v)
	if err != nil { // our own records always encode
		c.log.LogAttrs(r.Context(), slog.LevelError, "control answer not encoded", slog.Any("error", err))
		http.Error(w, `{"error":"the answer could not be encoded","code":"internal"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(b, '\n')); err != nil {
		c.log.LogAttrs(r.Context(), slog.LevelDebug, "control answer not taken", slog.Any("error", err))
	}
}

// serve runs the API on l until ctx ends, or l fails, which is an error. Requests
// that run then get a moment to end and are canceled after it; nothing of them, or
// of their connections, is left when serve returns.
func (c *controller) serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup // their goroutines
	srv := &http.Server{
		Handler:           c.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       controlIdle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(c.log.Handler(), slog.LevelWarn),
		ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew: // before its goroutine begins
				conns.Add(1)
			case http.StateClosed: // at the end of it
				conns.Done()
			case http.StateActive, http.StateIdle, http.StateHijacked: // nobody hijacks
			}
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(limitListener(l, maxControlConns)) }()
	var died error
	select {
	case died = <-ended:
	case <-ctx.Done():
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	err := srv.Shutdown(stopCtx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close() // cancels the contexts of those requests
	}
	if died == nil {
		died = <-ended
	}
	conns.Wait()
	if !errors.Is(died, http.ErrServerClosed) {
		err = errors.Join(died, err)
	}
	return err
}

// stopPatience is how long a stop waits for control requests that run.
const stopPatience = 5 * time.Second

// bodyError explains a request body that could not be read.
func bodyError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(CodeInvalid, "the request is larger than %d bytes", maxBody)
	}
	return refuse(CodeInvalid, "the request's body could not be read: %v", err)
}

// decode reads a request's body, which must be exactly one JSON object with
// fields of in; a nil in wants an empty body.
func decode(r *http.Request, in any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if in == nil {
		in = &struct{}{}
		if err := d.Decode(in); err == nil || errors.Is(err, io.EOF) {
			return nil
		}
		return refuse(CodeInvalid, "this request takes no fields")
	}
	if err := d.Decode(in); err != nil {
		if errors.Is(err, io.EOF) {
			return refuse(CodeInvalid, "the request has no body: send a JSON object")
		}
		return refuse(CodeInvalid, "the request is not understood: %s", clip(err.Error()))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refuse(CodeInvalid, "the request has more than one JSON object")
	}
	return nil
}

func httpStatus(c Code) int {
	switch c {
	case CodeNotFound:
		return http.StatusNotFound
	case CodeBusy, CodeConflict:
		return http.StatusConflict
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNoSpace:
		return http.StatusInsufficientStorage
	default:
		return http.StatusInternalServerError
	}
}
