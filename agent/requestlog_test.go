package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
)

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// requests are the IDs of requests in the lines with a message.
func (l *lines) requests(t *testing.T, msg string) (out []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.b.Bytes()) {
		var x struct {
			Msg     string `json:"msg"`
			Request string `json:"request_id"`
		}
		if err := json.Unmarshal(line, &x); err != nil {
			t.Fatal(err)
		}
		if x.Msg == msg {
			out = append(out, x.Request)
		}
	}
	return out
}

// TestRequestLog: what a request leads to is logged with its ID, at another host and in its
// job too.
func TestRequestLog(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	var here, there lines
	for r, l := range map[*rig]*lines{a: &there, b: &here} {
		r.stopAgent()
		r.logger = slog.New(slog.NewJSONHandler(l, nil))
		r.startAgent()
	}
	v := a.disk(ann, nil)
	b.backedUp(ann, v, nil)
	a.until("the end of the job", func() bool { return len(there.requests(t, "job ended")) == 1 })
	asked := here.requests(t, "API request")
	if len(asked) != 1 || asked[0] == "" {
		t.Fatal(asked)
	}
	for _, msg := range []string{"call of another host", "job started", "job ended"} {
		if got := there.requests(t, msg); len(got) != 1 || got[0] != asked[0] {
			t.Errorf("%s: %v, want %v", msg, got, asked)
		}
	}
}
