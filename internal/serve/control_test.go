package serve_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

// raw sends one request as it is, and returns the status and the answer.
func raw(control string) func(method, path, body string) (int, []byte, error) {
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", control)
	}}}
	return func(method, path, body string) (int, []byte, error) {
		req, err := http.NewRequest(method, "http://cairn"+path, strings.NewReader(body))
		if err != nil {
			return 0, nil, err
		}
		resp, err := hc.Do(req)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		return resp.StatusCode, answer, err
	}
}

func TestControlRequests(t *testing.T) {
	p := start(t, options(t))
	p.create(t, "db", mib)
	send := raw(p.o.Control)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"unknown field", "POST", "/v1/volumes", `{"name":"x","size":1048576,"tint":1}`, 400, "tint"},
		{"no body", "POST", "/v1/volumes", ``, 400, "no body"},
		{"no JSON", "POST", "/v1/volumes", `name=x`, 400, "not understood"},
		{"no object", "POST", "/v1/volumes", `[]`, 400, "not understood"},
		{"two objects", "POST", "/v1/volumes/db/extend", `{"size":2097152}{"size":1}`, 400, "more than one"},
		{"wrong type", "POST", "/v1/volumes/db/extend", `{"size":"2MiB"}`, 400, "not understood"},
		{"number too large", "POST", "/v1/volumes/db/extend", `{"size":1e300}`, 400, "not understood"},
		{"too large", "POST", "/v1/volumes", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 400, "larger than"},
		{"fields where there are none", "DELETE", "/v1/volumes/db", `{"force":true}`, 400, "takes no fields"},
		{"empty object is no field", "DELETE", "/v1/volumes/nope", `{}`, 404, "nope"},
		{"other method", "PUT", "/v1/volumes/db", ``, 404, "PUT"},
		{"other path", "GET", "/v2/volumes", ``, 404, "/v2/volumes"},
		{"encoded slash", "GET", "/v1/volumes/..%2f..%2fetc", ``, 404, "no volume"},
		{"encoded zero", "GET", "/v1/volumes/%00", ``, 404, "no volume"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, answer, err := send(tt.method, tt.path, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			var e serve.Error
			if err := json.Unmarshal(answer, &e); err != nil {
				t.Fatalf("answer %q: %v", answer, err)
			}
			if status != tt.status || e.Code == "" || !strings.Contains(e.Text, tt.says) {
				t.Errorf("answer %d %q, want %d and %q", status, answer, tt.status, tt.says)
			}
		})
	}
	if v, err := p.Volume(t.Context(), "db"); err != nil || v.Size != mib {
		t.Errorf("volume %+v, %v: a refused request changed it", v, err)
	}
}

func FuzzControl(f *testing.F) {
	for _, s := range [][3]string{
		{"GET", "/v1/status", ""},
		{"GET", "/v1/volumes", ""},
		{"POST", "/v1/volumes", `{"name":"a","size":1048576}`},
		{"POST", "/v1/volumes", `{"name":"b","size":9223372036854775807,"allow_format":true}`},
		{"GET", "/v1/volumes/a", ""},
		{"POST", "/v1/volumes/a/extend", `{"size":2097152}`},
		{"POST", "/v1/volumes", `{"name":"c","size":1048576,"attributes":{"owner":["<x>",1e3]}}`},
		{"PUT", "/v1/volumes/a/attributes", `{"attributes":{"a":{}},"was":{}}`},
		{"POST", "/v1/volumes/a/reopen", `{}`},
		{"DELETE", "/v1/volumes/a", ""},
		{"DELETE", "/v1/volumes/a/checkpoints/c", ""},
		{"POST", "/v1/snapshots", `{"volumes":["base"],"name":"s","temporary":true,"checkpoints":["c"],"force":true}`},
		{"POST", "/v1/snapshots", `{"volumes":["base"],"ids":["6ba7b810-9dad-41d1-80b4-00c04fd430c8"],"force":true}`},
		{"GET", "/v1/snapshots?volume=base", ""},
		{"GET", "/v1/snapshots/base@s", ""},
		{"POST", "/v1/snapshots/base@s/revert", ""},
		{"POST", "/v1/snapshots/base@s/checkpoints", `{"name":"k"}`},
		{"POST", "/v1/snapshots/base@s/release", `{"before":65536}`},
		{"DELETE", "/v1/snapshots/s", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	p := start(f, options(f))
	p.create(f, "base", mib)
	send := raw(p.o.Control)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		var c serve.CreateVolume
		if err := json.NewDecoder(strings.NewReader(body)).Decode(&c); err == nil && (c.File != "" || c.Device != "") {
			t.Skip("files of this machine are not to be played with")
		}
		if !strings.HasPrefix(path, "/") {
			path = "/v1/" + path
		}
		status, answer, err := send(method, path, body)
		if err != nil {
			t.Skip("no request that could be sent")
		}
		if status >= http.StatusInternalServerError && status != http.StatusInsufficientStorage {
			t.Errorf("%s %q %q: %d %s", method, path, body, status, answer)
		}
		// What net/http itself refuses has no code.
		if status >= 300 && status != http.StatusBadRequest && method != http.MethodHead {
			var e serve.Error
			if err := json.Unmarshal(answer, &e); err != nil || e.Code == "" || e.Text == "" {
				t.Errorf("%s %q %q: %d %q", method, path, body, status, answer)
			}
		}
		tidy(t, p)
	})
}

// tidy keeps a fuzzed plane small.
func tidy(t *testing.T, p *plane) {
	t.Helper()
	st, err := p.Status(t.Context())
	if err != nil {
		t.Fatalf("the data plane is gone: %v", err)
	}
	if st.Volumes < 8 && st.Snapshots < 8 {
		return
	}
	ss, err := p.Snapshots(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range ss {
		if err = p.DeleteSnapshot(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	vs, err := p.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if v.Name != "base" {
			if err := p.DeleteVolume(t.Context(), v.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestClientAgainstStrangers(t *testing.T) {
	dir := options(t).State
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	if _, err := serve.NewClient(sock).Status(t.Context()); !errors.Is(err, serve.ErrUnreachable) || !strings.Contains(err.Error(), sock) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status":
			http.Error(w, "I am somebody else", http.StatusTeapot)
		case "/v1/volumes":
			_, _ = w.Write([]byte("<html>"))
		default:
			<-r.Context().Done()
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	defer func() {
		_ = srv.Close()
		<-ended
	}()
	c := serve.NewClient(sock)
	defer c.Close()
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("another program: %v", err)
	}
	if _, err := c.Volumes(t.Context()); err == nil {
		t.Error("an answer that is no JSON was taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Volume(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// A stop waits for requests that run, and none is answered halfway.
func TestStopDuringRequests(t *testing.T) {
	p := start(t, options(t))
	p.create(t, "db", mib)
	began, ended := make(chan struct{}, 64), make(chan []string)
	go func() {
		var made []string
		for {
			ss, err := p.CreateSnapshots(context.Background(), serve.CreateSnapshots{Volumes: []string{"db"}})
			if err != nil {
				ended <- made
				return
			}
			made = append(made, ss[0].ID)
			select {
			case began <- struct{}{}:
			default:
			}
		}
	}()
	for range 5 {
		<-began
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	made := <-ended
	p = start(t, p.o)
	ss, err := p.Snapshots(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	var have bytes.Buffer
	for _, s := range ss {
		have.WriteString(s.ID)
	}
	for _, id := range made {
		if !strings.Contains(have.String(), id) {
			t.Errorf("snapshot %s was confirmed, and is not there", id)
		}
	}
}
