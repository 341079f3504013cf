package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/nbd"
)

// tester is what a rig needs of a test or of one round of a property.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// cheapKDF keeps tests fast.
var cheapKDF = &repository.KDF{Time: 1, MemoryKiB: 8, Threads: 1}

// rig is a data plane, a repository on six stores and an agent.
type rig struct {
	tester
	dir    string
	stores []*memstore.Faulty
	repo   *repository.Repository
	serve  *serve.Client
	agent  *Client
	limits Limits
	scrub  Scrub
	others []Repo

	host, catalog string // see Options
	logger        *slog.Logger

	served  bool   // the Block Storage API too, at url, which changes with each start
	url     string // of its root
	strict  bool   // strict chains
	webhook string
	opener  Opener                   // instead of the repository
	tcp     func() *tcpdoor.Settings // of a door for exports, which each agent gets anew; nil = none

	stopServe, stopAgent func()
}

// newRig starts all of it; close stops it.
func newRig(t tester, dir string) *rig {
	t.Helper()
	r := &rig{tester: t, dir: dir}
	r.init(r.six())
	return r
}

// six makes the rig's stores.
func (r *rig) six() (stores []objstore.Store) {
	for i := range 6 {
		f := memstore.WithFaults(memstore.New(fmt.Sprintf("mem%d", i)), memstore.Faults{})
		r.stores = append(r.stores, f)
		stores = append(stores, f)
	}
	return stores
}

func (r *rig) init(stores []objstore.Store) {
	r.Helper()
	ctx := context.Background()
	if _, err := repository.Init(ctx, repository.InitOptions{Stores: stores, Data: 4, Parity: 2, Password: []byte("secret"), KDF: cheapKDF}); err != nil {
		r.Fatal(err)
	}
	var err error
	if r.repo, err = repository.Open(ctx, repository.Options{Stores: stores, Password: []byte("secret"), CacheDir: filepath.Join(r.dir, "cache"), Agent: "test"}); err != nil {
		r.Fatal(err)
	}
	r.startBoth()
}

// startBoth starts the data plane and the agent.
func (r *rig) startBoth() {
	r.Helper()
	r.serve, r.agent = serve.NewClient(filepath.Join(r.dir, "c")), NewClient(filepath.Join(r.dir, "a"))
	r.startServe()
	r.startAgent()
}

func (r *rig) startServe() {
	r.Helper()
	r.stopServe = r.start("serve", func(ctx context.Context, ready func()) error {
		return serve.Run(ctx, serve.Options{State: filepath.Join(r.dir, "serve"), Control: filepath.Join(r.dir, "c"), NBDDir: filepath.Join(r.dir, "n")}, ready)
	})
}

func (r *rig) startAgent() {
	r.Helper()
	api, repo := r.api(), r.repo
	var tcp *tcpdoor.Settings
	if r.tcp != nil {
		tcp = r.tcp()
	}
	if r.opener != nil {
		repo = nil
	}
	r.stopAgent = r.start("agent", func(ctx context.Context, ready func()) error {
		return Run(ctx, Options{
			State: filepath.Join(r.dir, "agent"), Socket: filepath.Join(r.dir, "a"), NBDDir: filepath.Join(r.dir, "n"),
			Repository: repo, Open: r.opener, Others: r.others, Serve: r.serve, Limits: r.limits, Scrub: r.scrub, KeepPriority: true, Logger: r.logger,
			API: api, TCP: tcp, Webhook: r.webhook, Host: orElse(r.host, "here"), Catalog: r.catalog,
		}, ready)
	})
}

// start runs f until the function that it returns is called.
func (r *rig) start(what string, f func(ctx context.Context, ready func()) error) func() {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		r.Fatalf("%s did not start: %v", what, err)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			r.Errorf("%s: %v", what, err)
		}
	}
}

func (r *rig) close() {
	r.stopAgent()
	r.stopServe()
	r.agent.Close()
	r.serve.Close()
	if err := r.repo.Close(); err != nil {
		r.Errorf("close repository: %v", err)
	}
}

func testRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, dir)
	t.Cleanup(func() {
		r.close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// volume makes a volume of this size.
func (r *rig) volume(name string, size int64) Volume {
	r.Helper()
	v, err := r.agent.CreateVolume(context.Background(), CreateVolume{Name: name, Size: size})
	if err != nil {
		r.Fatal(err)
	}
	return v
}

// dial connects to an export.
func (r *rig) dial(uri string) *nbd.Client {
	r.Helper()
	c, err := nbd.Dial(context.Background(), uri, nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}})
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// write writes to an export, flushes it and waits until it is not used any more.
func (r *rig) write(uri string, f func(c *nbd.Client) error) {
	r.Helper()
	c := r.dial(uri)
	if err := errors.Join(f(c), c.Flush(context.Background()), c.Close()); err != nil {
		r.Fatal(err)
	}
}

// idle waits until nobody uses a volume.
func (r *rig) idle(ref string) {
	r.Helper()
	for range 1000 {
		v, err := r.serve.Volume(context.Background(), ref)
		if err != nil {
			r.Fatal(err)
		}
		if !v.InUse {
			return
		}
		pause(context.Background(), 5*time.Millisecond)
	}
	r.Fatalf("volume %s stays in use", ref)
}

// put writes bytes to a volume and to its shadow.
func (r *rig) put(v Volume, shadow, p []byte, off int64) {
	r.Helper()
	copy(shadow[off:], p)
	r.write(v.URI, func(c *nbd.Client) error { return c.WriteAt(context.Background(), p, off, false) })
	r.idle(v.ID)
}

// read reads all of an export.
func (r *rig) read(uri string) []byte {
	r.Helper()
	c := r.dial(uri)
	p := make([]byte, c.Size())
	if err := errors.Join(c.ReadAt(context.Background(), p, 0), c.Close()); err != nil {
		r.Fatal(err)
	}
	return p
}

// wait waits for a job.
func (r *rig) wait(j Job, err error) Job {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
	j, err = r.agent.WaitJob(context.Background(), j.ID, nil)
	if err != nil {
		r.Fatal(err)
	}
	return j
}

// backup makes a backup that must succeed.
func (r *rig) backup(req CreateBackup) Backup {
	r.Helper()
	j := r.wait(r.agent.CreateBackup(context.Background(), req))
	if j.State != JobSucceeded {
		r.Fatalf("backup: %+v", j)
	}
	b, err := r.agent.Backup(context.Background(), j.Backup)
	if err != nil || b.Status != BackupAvailable {
		r.Fatalf("backup %+v, %v", b, err)
	}
	return b
}

// same checks what a backup holds.
func (r *rig) same(b Backup, want []byte) {
	r.Helper()
	r.equal("backup "+b.ID, r.content(b), want)
}

// content is what a backup holds, read straight from the stores.
func (r *rig) content(b Backup) []byte {
	r.Helper()
	img, err := r.repo.Image(context.Background(), b.ID)
	if err != nil {
		r.Fatal(err)
	}
	got := make([]byte, img.Size())
	if err := errors.Join(img.ReadAt(context.Background(), got, 0), img.Close()); err != nil {
		r.Fatal(err)
	}
	return got
}

func (r *rig) equal(what string, got, want []byte) {
	r.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		r.Fatalf("%s has %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			r.Fatalf("%s differs from byte %d on (block %d): %#x, want %#x", what, i, i>>16, got[i], want[i])
		}
	}
}

// settled checks that nothing is left of jobs in the data plane: no temporary
// snapshot, and of checkpoints only those of these backups.
func (r *rig) settled(ref string, backups ...Backup) {
	r.Helper()
	var problem string
	for range 1000 {
		snaps, err := r.serve.Snapshots(context.Background(), ref)
		if err != nil {
			r.Fatal(err)
		}
		v, err := r.serve.Volume(context.Background(), ref)
		if err != nil {
			r.Fatal(err)
		}
		problem = ""
		for _, s := range snaps {
			if s.Temporary {
				problem = fmt.Sprintf("temporary snapshot %+v", s)
			}
		}
		var have, want []string
		for _, c := range v.Checkpoints {
			have = append(have, c.Name)
		}
		for _, b := range backups {
			want = append(want, b.ID)
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			problem = fmt.Sprintf("checkpoints %v, want %v", have, want)
		}
		if problem == "" {
			return
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	r.Fatalf("not settled: %s", problem)
}

// until waits for something that the agent does by itself.
func (r *rig) until(what string, done func() bool) {
	r.Helper()
	for range 1000 {
		if done() {
			return
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	r.Fatalf("%s did not come", what)
}

// down takes the first n stores away, and brings the others back.
func (r *rig) down(n int) {
	for i, s := range r.stores {
		s.SetDown(i < n)
	}
}

// hang makes all puts of packs wait until the function that it
// returns is called; began tells of the first.
func (r *rig) hang() (began <-chan struct{}, release func()) { return hangPacks(r.stores) }

func hangPacks(stores []*memstore.Faulty) (began <-chan struct{}, release func()) {
	return holdCalls(stores, "put", "packs/")
}

// noise is bytes that nothing compresses.
func noise(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p)
	return p
}

// scatter changes n blocks of 4 KiB and returns how many blocks of 64 KiB
// that touches.
func (r *rig) scatter(v Volume, shadow []byte, n int) int64 {
	r.Helper()
	touched := map[int64]bool{}
	r.write(v.URI, func(c *nbd.Client) error {
		for range n {
			off := mrand.Int64N(int64(len(shadow))/4096) * 4096
			p := noise(4096)
			copy(shadow[off:], p)
			touched[off>>16] = true
			if err := c.WriteAt(context.Background(), p, off, false); err != nil {
				return err
			}
		}
		return nil
	})
	r.idle(v.ID)
	return int64(len(touched))
}

// sessionOptions are those that a backup's job would have used.
func sessionOptions(b Backup) repository.SessionOptions {
	return repository.SessionOptions{VolumeID: b.VolumeID, Volume: b.Volume}
}
