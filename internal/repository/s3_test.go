package repository

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/retry"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// s3Cluster is a 2+2 repository on four real servers, two of each kind, each
// behind a line that can be troubled.
type s3Cluster struct {
	servers []*s3test.Server
	lines   []*s3test.Proxy
	stores  []objstore.Store
}

func newS3Cluster(t *testing.T) *s3Cluster {
	t.Helper()
	s3test.Keys(t)
	c := &s3Cluster{}
	for i, k := range []s3test.Kind{s3test.Versitygw, s3test.MinIO, s3test.Versitygw, s3test.MinIO} {
		srv := s3test.New(t, k)
		srv.Bucket(t, "cairn")
		c.servers = append(c.servers, srv)
		c.lines = append(c.lines, s3test.NewProxy(t, srv.Addr))
		c.stores = append(c.stores, openS3(t, s3test.URL(c.lines[i].Addr, "cairn/host")))
	}
	if _, err := Init(t.Context(), InitOptions{Stores: c.stores, Data: 2, Parity: 2, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	return c
}

func openS3(t *testing.T, url string) objstore.Store {
	t.Helper()
	config, _, err := s3store.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3store.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return retry.New(s, retry.Options{})
}

// borrowed are stores that their repository does not close.
type borrowed struct{ objstore.Store }

func (borrowed) Close() error { return nil }

func (c *s3Cluster) open(t *testing.T) *Repository {
	t.Helper()
	// A store that failed is left alone for a while, as it is in earnest.
	timing := eager
	timing.Aside = time.Minute
	o := Options{Password: password, Timing: timing}
	for _, s := range c.stores {
		o.Stores = append(o.Stores, borrowed{s})
	}
	r, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// trouble makes the lines of the stores with these numbers bad, and all others
// good.
func (c *s3Cluster) trouble(tr s3test.Trouble, stores ...int) {
	for _, l := range c.lines {
		l.Set(s3test.Trouble{})
	}
	for _, i := range stores {
		c.lines[i].Set(tr)
	}
}

func TestS3(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	c := newS3Cluster(t)
	r := c.open(t)
	random := seeded(31)
	disk := randomContent(random, 600, 400)
	disk.mustBackup(t, r, "full", "", nil)
	mustVerify(t, disk, r, "full")
	first := disk.clone()

	t.Run("bad lines while reading", func(t *testing.T) {
		for _, tt := range []struct {
			name   string
			tr     s3test.Trouble
			stores []int
		}{
			{"slow", s3test.Trouble{Delay: 30 * time.Millisecond}, []int{0}},
			{"cut", s3test.Trouble{CutTo: 100 << 10}, []int{0, 3}},
			{"wrong bytes", s3test.Trouble{Corrupt: true}, []int{1, 2}},
			{"hang", s3test.Trouble{Hang: true}, []int{2}},
			{"refuse", s3test.Trouble{Refuse: true}, []int{0, 1}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				c.trouble(tt.tr, tt.stores...)
				defer c.trouble(s3test.Trouble{})
				mustVerify(t, first, c.open(t), "full")
			})
		}
	})

	t.Run("one server dies during a backup", func(t *testing.T) {
		changed := disk.change(random, 200)
		done := make(chan error, 1)
		go func() {
			o, err := disk.backup(context.WithoutCancel(t.Context()), r, "second", "full", changed)
			if err == nil && o != OutcomeCommitted {
				err = errors.New("not committed")
			}
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		c.servers[1].Kill(t)
		time.Sleep(50 * time.Millisecond)
		c.servers[1].Start(t)
		if err := <-done; err != nil {
			t.Fatalf("backup with one of four stores down for a while: %v", err)
		}
		mustVerify(t, disk, r, "second")
		mustVerify(t, disk, c.open(t), "second")
	})
	second := disk.clone()

	t.Run("two servers are down", func(t *testing.T) {
		c.servers[0].Kill(t)
		c.servers[3].Kill(t)
		mustVerify(t, second, r, "second")
		changed := disk.change(random, 20)
		if o, err := disk.backup(t.Context(), r, "third", "second", changed); o == OutcomeCommitted || !errors.Is(err, ErrTooFewStores) {
			t.Errorf("backup with two of four stores: %v, %v", o, err)
		}
		c.servers[0].Start(t)
		c.servers[3].Start(t)
		backups, err := r.Backups(t.Context())
		if live := ids(backups, Available); err != nil || !live["full"] || !live["second"] || live["third"] {
			t.Errorf("backups: %v, %v", live, err)
		}
		disk.mustBackup(t, r, "fourth", "second", changed)
		mustVerify(t, disk, r, "fourth")
	})

	t.Run("a server is wiped", func(t *testing.T) {
		c.servers[2].Kill(t)
		c.servers[2].Wipe(t)
		c.servers[2].Start(t)
		state := func() StoreStatus {
			for _, s := range r.Status(t.Context()) {
				if strings.Contains(s.URL, c.lines[2].Addr) {
					return s
				}
			}
			return StoreStatus{}
		}
		if s := state(); s.State != StoreDown || !strings.Contains(s.Error, "no bucket cairn") {
			t.Errorf("without its bucket: %+v", s)
		}
		mustVerify(t, disk, r, "fourth")
		c.servers[2].Bucket(t, "cairn")
		if s := state(); s.State == StoreUp {
			t.Errorf("with an empty bucket: %+v", s)
		}
		mustVerify(t, disk, r, "fourth")
		changed := disk.change(random, 20)
		disk.mustBackup(t, r, "fifth", "fourth", changed)
		// The wiped store counted in nothing: one more may be lost.
		c.servers[1].Kill(t)
		mustVerify(t, disk, c.open(t), "fifth")
	})
}

// TestS3AndFolders is one repository on a folder and two servers: backups, a
// deletion, prunes with their race for one name, and what is left.
func TestS3AndFolders(t *testing.T) {
	s3test.Keys(t)
	var servers []*s3test.Server
	for _, k := range []s3test.Kind{s3test.MinIO, s3test.Versitygw} {
		srv := s3test.New(t, k)
		srv.Bucket(t, "cairn")
		servers = append(servers, srv)
	}
	folder, err := dirstore.Create(t.TempDir(), dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := &s3Cluster{stores: []objstore.Store{folder, openS3(t, servers[0].URL("cairn/a")), openS3(t, servers[1].URL("cairn"))}}
	if _, err = Init(t.Context(), InitOptions{Stores: c.stores, Data: 2, Parity: 1, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	disk := randomContent(seeded(32), 100, 60)
	disk.mustBackup(t, c.open(t), "b", "", nil)
	mustVerify(t, disk, c.open(t), "b")

	r := c.open(t)
	packs := func() (sum [3]int) {
		for i, s := range c.stores {
			if lerr := s.List(t.Context(), "packs/", func(objstore.Info) error { sum[i]++; return nil }); lerr != nil {
				t.Error(lerr)
			}
		}
		return sum
	}
	other := randomContent(seeded(35), 400, 300)
	other.mustBackup(t, r, "other", "", nil)
	before := packs()
	if err = r.Delete(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		mustPrune(t, r)
	}
	mustVerify(t, disk, c.open(t), "b")
	for i, n := range packs() {
		if n == 0 || n >= before[i] {
			t.Errorf("store %d has %d packs behind the prunes, %d before", i, n, before[i])
		}
	}
}

// overwriting takes a name twice, as a server does that ignores conditions.
type overwriting struct{ objstore.Store }

func (o overwriting) Put(ctx context.Context, name string, body []byte) error {
	if err := o.Delete(ctx, name); err != nil {
		return err
	}
	return o.Store.Put(ctx, name, body)
}

func TestInitRefusesStoresThatOverwrite(t *testing.T) {
	c := newCluster(3)
	stores := c.stores()
	stores[1] = overwriting{stores[1]}
	_, err := Init(t.Context(), InitOptions{Stores: stores, Data: 2, Parity: 1, Password: password, KDF: cheapKDF})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "store mem:1 overwrites") {
		t.Errorf("Init = %v", err)
	}
	for i, m := range c.mem {
		if left := m.Names(); len(left) > 0 {
			t.Errorf("store %d holds %v", i, left)
		}
	}
}
