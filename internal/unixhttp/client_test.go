package unixhttp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var errUnreachable, errRefused = errors.New("nobody answers"), errors.New("refused")

func TestClient(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := New(Server{
		Socket: socket, Name: "test", Idle: time.Minute, Unreachable: errUnreachable, Hint: "does it run?",
		Refusal: func(status int, body []byte) error { return fmt.Errorf("%w: %d %s", errRefused, status, body) },
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	err := c.Do(ctx, http.MethodGet, "/", nil, nil)
	if !errors.Is(err, errUnreachable) || !strings.Contains(err.Error(), socket+": does it run?") || strings.Contains(err.Error(), "http://") {
		t.Errorf("nobody: %v", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			b := make([]byte, r.ContentLength)
			_, _ = r.Body.Read(b)
			_, _ = w.Write(b)
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		case "/half":
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("["))
		case "/hold":
			<-hold
		default:
			http.Error(w, "no", http.StatusTeapot)
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	out := 0
	if err := c.Do(ctx, http.MethodPost, "/echo", 7, &out); err != nil || out != 7 {
		t.Errorf("echo: %d, %v", out, err)
	}
	if err := c.Do(ctx, http.MethodGet, "/nothing", nil, &out); err != nil || out != 7 {
		t.Errorf("no content: %d, %v", out, err)
	}
	if err := c.Do(ctx, http.MethodGet, "/half", nil, &out); !errors.Is(err, errUnreachable) {
		t.Errorf("half an answer: %v", err)
	}
	if err := c.Do(ctx, http.MethodGet, "/else", nil, &out); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "418 no") {
		t.Errorf("refused: %v", err)
	}
	if err := c.Do(ctx, http.MethodPost, "/echo", "x", &out); err == nil || !strings.Contains(err.Error(), "answer of test") {
		t.Errorf("something else: %v", err)
	}
	why := errors.New("no longer wanted")
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if err := c.Do(ctx, http.MethodGet, "/hold", nil, &out); !errors.Is(err, why) || errors.Is(err, errUnreachable) {
		t.Errorf("canceled: %v", err)
	}
	close(hold)
	c.Close()
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestSegment(t *testing.T) {
	for name, want := range map[string]string{"vm1": "vm1", "a/b": "a%2Fb", "a?b": "a%3Fb", "": "%22%22", ".": "%2E", "..": "%2E%2E", "a..": "a.."} {
		if got := Segment(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
