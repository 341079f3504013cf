package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// guest writes to a volume, block after block, and remembers it.
type guest struct {
	c    *nbd.Client
	was  []byte
	n    int64 // writes
	stop atomic.Bool
}

const guestBlock = 64 << 10

// write writes one block, and then into the first how many there were.
func (g *guest) write(ctx context.Context) error {
	g.n++
	p, off := g.block(g.n)
	return errors.Join(g.c.WriteAt(ctx, p, off, false), g.c.WriteAt(ctx, binary.BigEndian.AppendUint64(nil, uint64(g.n)), 0, false))
}

// block is what the n-th write writes, and where.
func (g *guest) block(n int64) ([]byte, int64) {
	blocks := int64(len(g.was)) / guestBlock
	return bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(n)), guestBlock/8), (1 + n*7%(blocks-1)) * guestBlock
}

// at is the content behind the n-th write.
func (g *guest) at(n int64) []byte {
	out := bytes.Clone(g.was)
	for i := int64(1); i <= n; i++ {
		p, off := g.block(i)
		copy(out[off:], p)
	}
	binary.BigEndian.PutUint64(out, uint64(n))
	return out
}

// backupHolds checks that a backup holds the volume as it was at one instant, and returns
// the number of writes that were done by then.
func (g *guest) backupHolds(r *rig, b Backup) int64 {
	r.Helper()
	got := r.content(b)
	n := int64(binary.BigEndian.Uint64(got))
	if n > g.n {
		r.Fatalf("%d writes, and there were %d", n, g.n)
	}
	want := g.at(n)
	if p, off := g.block(n + 1); n < g.n && bytes.Equal(got[off:off+guestBlock], p) {
		copy(want[off:], p) // its number came behind the instant
	}
	want = append(want, make([]byte, max(0, len(got)-len(want)))...) // it grew
	r.equal("backup "+b.ID, got, want)
	return n
}

// What a backup has read of its snapshot is released, and costs the guest nothing any
// more. When its audit finds something, everything is compared on another snapshot, beside
// a guest that writes, and of a volume that has grown meanwhile.
func TestReadAgainBesideGuest(t *testing.T) {
	const size = 32 << 20
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", size)
	g := &guest{was: noise(size)}
	clear(g.was[:8]) // the number of writes
	r.write(v.URI, func(c *nbd.Client) error { return c.WriteAt(ctx, g.was, 0, false) })
	r.idle("disk")
	r.backup(CreateBackup{Volume: "disk"})
	before := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	// Changes that nobody marked, wherever the audit looks.
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(guestBlock); off < size; off += guestBlock {
		evil := noise(100)
		copy(g.was[off:], evil)
		if _, err = f.WriteAt(evil, off); err != nil {
			t.Fatal(err)
		}
	}
	if err = f.Close(); err != nil {
		t.Fatal(err)
	}
	g.c = r.dial(v.URI)
	if err = g.write(ctx); err != nil {
		t.Fatal(err)
	}

	began, release := r.holdDelete()
	defer release()
	j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk", Incremental: true, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	r.await(began) // all is read
	first := r.temporary("disk")
	if r.readable(first, size-1) {
		t.Error("what was read is not released")
	}
	for range size / guestBlock {
		if err = g.write(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if now := r.temporary("disk"); now.ID != first.ID || now.PreimageBytes != first.PreimageBytes {
		t.Errorf("of what was read %d bytes were saved", now.PreimageBytes-first.PreimageBytes)
	}
	grown := size + 3*guestBlock + int64(4096)
	if _, err = r.serve.ExtendVolume(ctx, "disk", grown); err != nil {
		t.Fatal(err)
	}
	least := g.n
	var wg sync.WaitGroup
	wg.Go(func() {
		for !g.stop.Load() {
			if werr := g.write(ctx); werr != nil {
				t.Error(werr)
				return
			}
		}
	})
	release()
	j = r.wait(j, nil)
	g.stop.Store(true)
	wg.Wait()
	if j.State != JobSucceeded {
		t.Fatalf("%+v", j)
	}
	b, err := r.agent.Backup(ctx, j.Backup)
	if err != nil {
		t.Fatal(err)
	}
	if n := g.backupHolds(r, b); n < least {
		t.Errorf("it is as the volume was behind %d writes, and there were %d before everything was compared", n, least)
	}
	if b.Size != grown || !strings.Contains(b.FullCompareReason, "audit") || !b.DataTime.After(first.Created) {
		t.Errorf("%+v", b)
	}
	if x, xerr := r.agent.Backup(ctx, before.ID); xerr != nil || !strings.Contains(x.Warning, missedChanges) {
		t.Errorf("the one before is not flagged: %+v, %v", x, xerr)
	}
	r.settled("disk", before, b)
	// The checkpoint is at the second snapshot: what came behind it is in the next.
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true, Force: true})
	if n := g.backupHolds(r, next); n != g.n || next.Parent != b.ID || next.FullCompareReason != "" || next.BytesRead >= size && g.n-least < size/guestBlock/2 {
		t.Errorf("behind %d writes of %d: %+v", n, g.n, next)
	}
	if err = g.c.Close(); err != nil {
		t.Fatal(err)
	}
}

// holdDelete starts the agent again behind a proxy that holds the first deletion of a
// snapshot until the function that it returns is called; began tells of it.
func (r *rig) holdDelete() (began <-chan struct{}, release func()) {
	r.Helper()
	l, err := net.Listen("unix", filepath.Join(r.dir, "p"))
	if err != nil {
		r.Fatal(err)
	}
	plane := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(r.dir, "c"))
	}}
	pass := &httputil.ReverseProxy{Transport: plane, Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "http", "plane"
	}}
	first, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	proxy := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodDelete && strings.HasPrefix(q.URL.Path, "/v1/snapshots/") {
			once.Do(func() {
				close(first)
				<-gate
			})
		}
		pass.ServeHTTP(w, q)
	})}
	ended := make(chan error, 1)
	go func() { ended <- proxy.Serve(l) }()
	direct := r.serve
	r.stopAgent()
	r.serve = serve.NewClient(filepath.Join(r.dir, "p"))
	r.startAgent()
	proxied, stopAgent := r.serve, r.stopAgent
	r.serve, r.stopAgent = direct, func() {
		stopAgent()
		proxied.Close()
		if err := proxy.Close(); err != nil {
			r.Errorf("%v", err)
		}
		<-ended
		plane.CloseIdleConnections()
	}
	return first, sync.OnceFunc(func() { close(gate) })
}

// temporary returns the temporary snapshot of a volume.
func (r *rig) temporary(volume string) Snapshot {
	r.Helper()
	l, err := r.serve.Snapshots(context.Background(), volume)
	if err != nil || len(l) != 1 || !l[0].Temporary {
		r.Fatalf("%+v, %v", l, err)
	}
	return l[0]
}

// readable says whether a byte of a snapshot can be read.
func (r *rig) readable(s Snapshot, off int64) bool {
	r.Helper()
	c := r.dial(s.URI)
	err := c.ReadAt(context.Background(), make([]byte, 1), off)
	if err != nil && !errors.Is(err, nbd.EIO) {
		r.Fatal(err)
	}
	if cerr := c.Close(); cerr != nil {
		r.Fatal(cerr)
	}
	return err == nil
}

// The backup of a snapshot that stays reads all of that again, and releases nothing.
func TestReadAgainNamedSnapshot(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 2<<20)
	shadow := make([]byte, 2<<20)
	r.put(v, shadow, noise(2<<20), 0)
	r.backup(CreateBackup{Volume: "disk"})
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	evil := noise(100)
	copy(shadow[1<<20:], evil)
	_, err = f.WriteAt(evil, 1<<20)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	r.put(v, shadow, noise(4096), 0)
	if _, err = r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "keep"}); err != nil {
		t.Fatal(err)
	}
	r.put(v, bytes.Clone(shadow), noise(2<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk", Snapshot: "keep", Incremental: true})
	r.same(b, shadow)
	if !strings.Contains(b.FullCompareReason, "audit") {
		t.Errorf("%+v", b)
	}
	l, err := r.serve.Snapshots(ctx, "disk")
	if err != nil || len(l) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	r.equal("the snapshot", r.read(l[0].URI), shadow)
}
