package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// descriptors is how many files this process has open.
func (r *rig) descriptors() int {
	r.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.Fatal(err)
	}
	return len(l)
}

// falls waits until a number is at most this.
func (r *rig) falls(what string, count func() int, most int) {
	r.Helper()
	got := 0
	for range 1000 {
		if got = count(); got <= most {
			return
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	r.Fatalf("%s: %d are left, want at most %d", what, got, most)
}

// Connections that are opened and left, also in the middle of a header, take no more
// descriptors than there may be and keep nobody out, neither of the API nor of the
// agent's own socket.
func TestConnectionsThatAreLeft(t *testing.T) {
	const many, slack = 1000, 20
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 3*many {
		needs.Missing(t, "%d descriptors are too few for the test: %v", limit.Cur, err)
	}
	r := apiRig(t, nil)
	r.get(ann, "volumes")
	for _, c := range []struct {
		name, network, address string
		most                   int
		ask                    func() error
	}{
		{"the API", "tcp", strings.TrimPrefix(r.url, "http://"), apiConnections, func() error {
			if status, answer := r.try(ann, http.MethodGet, "volumes", nil); status != http.StatusOK {
				return fmt.Errorf("%d %v", status, answer)
			}
			return nil
		}},
		{"the agent's socket", "unix", r.dir + "/a", ownConnections, func() error {
			_, err := r.agent.Volumes(t.Context())
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files, routines := r.descriptors(), runtime.NumGoroutine()
			var left []net.Conn
			for i := range many {
				var d net.Dialer
				conn, err := d.DialContext(t.Context(), c.network, c.address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				left = append(left, conn)
				if i%2 == 0 { // the agent may have ended it by now
					if _, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n"); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
						t.Fatal(err)
					}
				}
			}
			http.DefaultClient.CloseIdleConnections() // the next is a new client
			r.agent.Close()
			began := time.Now()
			if err := c.ask(); err != nil {
				t.Fatalf("a client that comes later: %v", err)
			}
			if took := time.Since(began); took > apiHeaderTimeout/2 {
				t.Errorf("a client that comes later waited for %v", took)
			}
			r.falls("descriptors beside those that are left", r.descriptors, files+many+c.most+slack)
			for _, conn := range left {
				_ = conn.Close() // the agent may have ended it
			}
			r.falls("descriptors behind it", r.descriptors, files+slack)
			r.falls("goroutines behind it", runtime.NumGoroutine, routines+slack)
		})
	}
}

// While all connections are at work the next waits for one of them, and no longer than
// for the end of the server.
func TestConnectionsAtWork(t *testing.T) {
	release, busy := make(chan struct{}), make(chan struct{}, 2)
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/work" {
			busy <- struct{}{}
			<-release
		}
	})}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(boundConnections(srv, l, 2)) }()
	answers := make(chan error, 3)
	get := func(path string) {
		req, rerr := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
		if rerr != nil {
			answers <- rerr
			return
		}
		client := http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		resp, rerr := client.Do(req)
		if rerr == nil {
			rerr = resp.Body.Close()
		}
		answers <- rerr
	}
	for range 2 {
		go get("/work")
		<-busy
	}
	go get("/")
	select {
	case err = <-answers:
		t.Fatalf("a third was answered while two worked: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	for range 3 {
		if err = <-answers; err != nil {
			t.Error(err)
		}
	}
	release = make(chan struct{})
	for range 2 {
		go get("/work")
		<-busy
	}
	go get("/")
	time.Sleep(50 * time.Millisecond) // it waits for its place by now, which is what is to end
	closing, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err = srv.Shutdown(closing); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown while two work: %v", err)
	}
	select {
	case err = <-ended:
		if !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not end while it waits for a place")
	}
	close(release)
	for range 3 {
		<-answers // of the third there is none
	}
}
