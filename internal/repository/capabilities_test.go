package repository

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// lacking is a store that does something wrong.
type lacking struct {
	objstore.Store
	what Capability
}

func (l *lacking) Put(ctx context.Context, name string, body []byte) error {
	err := l.Store.Put(ctx, name, body)
	if l.what == CreateOnce && strings.HasPrefix(name, probePrefix) && errors.Is(err, objstore.ErrExist) {
		return nil
	}
	return err //nolint:wrapcheck // the same store
}

func (l *lacking) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	if l.what == ReadAfterWrite && strings.HasPrefix(name, probePrefix) {
		return nil, objstore.ErrNotExist
	}
	return l.Store.Get(ctx, name, off, n, dst) //nolint:wrapcheck // as above
}

func (l *lacking) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if l.what == ListAfterWrite && strings.HasPrefix(prefix, probePrefix) {
		return nil
	}
	return l.Store.List(ctx, prefix, fn) //nolint:wrapcheck // as above
}

// Each capability is tried before a repository is made on a store, or a store is made
// a member, is recorded, and is missed by name when it is gone.
func TestCapabilities(t *testing.T) {
	for _, what := range capabilities() {
		t.Run(string(what), func(t *testing.T) {
			c := newCluster(6)
			bad := &lacking{Store: c.mem[3], what: what}
			stores := c.stores()
			stores[3] = bad
			_, err := Init(t.Context(), InitOptions{Stores: stores, Data: 4, Parity: 2, Password: password, KDF: cheapKDF})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), string(what)) || !strings.Contains(err.Error(), "mem:3") {
				t.Fatalf("init: %v", err)
			}
			for i, m := range c.mem {
				if left := m.Names(); len(left) > 0 {
					t.Errorf("store %d: left %v", i, left)
				}
			}
			c.init(t, 4, 2)
			r, err := Open(t.Context(), Options{Stores: stores, Password: password, Timing: eager})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			known, err := r.Capabilities(t.Context())
			if err != nil || len(known) != 6 {
				t.Fatalf("%v, %v", known, err)
			}
			for id, k := range known {
				if k.Probed.IsZero() || !slices.Equal(k.Capabilities, capabilities()) {
					t.Errorf("store %s: %+v", id, k)
				}
			}
			if _, err = r.Prune(t.Context(), hasty); err == nil || !strings.Contains(err.Error(), "it could ("+string(what)+")") {
				t.Errorf("prune: %v", err)
			}
			if _, err = r.AddStore(t.Context(), &lacking{Store: memstore.New("new"), what: what}, nil); err == nil || !strings.Contains(err.Error(), "cannot keep a repository") {
				t.Errorf("add a store: %v", err)
			}
			bad.what = ""
			done, err := r.AddStore(t.Context(), memstore.New("newer"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if known, err = r.Capabilities(t.Context()); err != nil || len(known) != 7 || known[done.Joined].Probed.IsZero() {
				t.Errorf("behind the addition: %v, %v", known, err)
			}
			if rep := mustCheck(t, r); !rep.OK() {
				t.Errorf("%+v", rep)
			}
		})
	}
}

// A repository that is older has no such records, and nobody misses them.
func TestCapabilitiesNotRecorded(t *testing.T) {
	c, r := fresh(t)
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, capablePrefix) {
				if err := m.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if known, err := r.Capabilities(t.Context()); err != nil || len(known) != 0 {
		t.Errorf("%v, %v", known, err)
	}
	mustPrune(t, r)
	if rep := mustCheck(t, c.open(t)); !rep.OK() {
		t.Errorf("%+v", rep)
	}
}
