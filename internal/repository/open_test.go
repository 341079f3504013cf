package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

func TestOpenRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, c *cluster, o *Options)
		err    error
		says   string
	}{
		{"wrong password", func(_ *testing.T, _ *cluster, o *Options) { o.Password = []byte("guess") }, ErrPassword, "password"},
		{"no store", func(_ *testing.T, _ *cluster, o *Options) { o.Stores = nil }, ErrInvalid, "no store"},
		{"store of another repository", func(t *testing.T, _ *cluster, o *Options) {
			t.Helper()
			other := newCluster(1)
			other.init(t, 1, 0)
			o.Stores[2] = other.faulty[0]
		}, ErrForeign, "mem:0 belongs to repository"},
		{"empty stores", func(_ *testing.T, _ *cluster, o *Options) { o.Stores = newCluster(2).stores() }, ErrForeign, "cairn repo init"},
		{"too few stores", func(_ *testing.T, _ *cluster, o *Options) { o.Stores = o.Stores[:3] }, ErrTooFewStores, "3 of the repository's 6 stores"},
		{"stores down", func(_ *testing.T, c *cluster, _ *Options) {
			for _, f := range c.faulty[:3] {
				f.SetDown(true)
			}
		}, ErrTooFewStores, "store is down"},
		{"all stores down", func(_ *testing.T, c *cluster, _ *Options) {
			for _, f := range c.faulty {
				f.SetDown(true)
			}
		}, ErrForeign, "store is down"},
		{"duplicate store", func(_ *testing.T, c *cluster, o *Options) { o.Stores[1] = c.mem[0].Clone() }, ErrInvalid, "are the same store"},
		{"newer version", func(t *testing.T, c *cluster, _ *Options) {
			t.Helper()
			r := c.open(t)
			m := *r.membership()
			m.Version, m.MinReader = 2, formatVersion+1
			name, object, err := r.keys.sealMembership(&m)
			if err != nil {
				t.Fatal(err)
			}
			c.mem[5].Replace(name, object)
		}, ErrVersion, "upgrade cairn"},
		{"newer envelope", func(t *testing.T, c *cluster, _ *Options) {
			t.Helper()
			for _, m := range c.mem {
				object, err := m.Get(t.Context(), storeName, 0, -1, nil)
				if err != nil {
					t.Fatal(err)
				}
				object[9] = 2
				m.Replace(storeName, object)
			}
		}, ErrVersion, "upgrade cairn"},
		{"no keys", func(_ *testing.T, c *cluster, _ *Options) { c.removeAll(keyPrefix) }, ErrTooFewStores, "no key of repository"},
		{"no members", func(_ *testing.T, c *cluster, _ *Options) { c.removeAll(membersPrefix) }, ErrTooFewStores, "no list of the repository's stores"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(6)
			c.init(t, 4, 2)
			o := Options{Stores: c.stores(), Password: password, Timing: eager}
			tt.change(t, c, &o)
			_, err := Open(t.Context(), o)
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Open = %v, want %v with %q", err, tt.err, tt.says)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\n!") {
				t.Errorf("no sentence: %v", err)
			}
		})
	}
}

// removeAll replaces all stores by copies without the objects below a prefix.
func (c *cluster) removeAll(prefix string) {
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, prefix) {
				_ = m.Delete(context.Background(), name) // cannot fail
			}
		}
	}
}

func TestOpenWithWhatIsThere(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(50), 50, 10)
	v.mustBackup(t, r, "b1", "", nil)
	t.Run("stores in another order", func(t *testing.T) {
		mustVerify(t, v, c.open(t, func(o *Options) { slices.Reverse(o.Stores) }), "b1")
	})
	t.Run("four of six", func(t *testing.T) {
		mustVerify(t, v, c.open(t, func(o *Options) { o.Stores = o.Stores[2:] }), "b1")
	})
	t.Run("damaged keys on some", func(t *testing.T) {
		hurt := c.clone()
		for _, m := range hurt.mem[:3] {
			for _, name := range m.Names() {
				if strings.HasPrefix(name, keyPrefix) || strings.HasPrefix(name, membersPrefix) {
					m.Replace(name, []byte("garbage"))
				}
			}
		}
		mustVerify(t, v, hurt.open(t), "b1")
	})
	t.Run("two claim a newer version", func(t *testing.T) {
		for _, prefix := range []string{storeName, membersPrefix} {
			hurt := c.clone()
			for _, m := range hurt.mem[:2] {
				for _, name := range m.Names() {
					if strings.HasPrefix(name, prefix) {
						object, err := m.Get(t.Context(), name, 0, -1, nil)
						if err != nil {
							t.Fatal(err)
						}
						object[9] ^= 4
						m.Replace(name, object)
					}
				}
			}
			mustVerify(t, v, hurt.open(t), "b1")
		}
	})
	t.Run("two name another repository", func(t *testing.T) {
		hurt := c.clone()
		for _, m := range hurt.mem[:2] {
			object, err := m.Get(t.Context(), storeName, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(object, []byte(c.open(t).Info().ID))
			if object[at]++; object[at] > '9' {
				object[at] = '0'
			}
			m.Replace(storeName, object)
		}
		r := hurt.open(t)
		mustVerify(t, v, r, "b1")
		down := 0
		for _, s := range r.Status(t.Context()) {
			if s.URL != "" && s.State == StoreDown && strings.Contains(s.Error, "names another repository") {
				down++
			}
		}
		if down != 2 {
			t.Errorf("%d stores are set aside: %+v", down, r.Status(t.Context()))
		}
	})
	t.Run("a store comes back", func(t *testing.T) {
		hurt := c.clone()
		hurt.faulty[0].SetDown(true)
		hurt.faulty[1].SetDown(true)
		r := hurt.open(t)
		if _, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"}); !errors.Is(err, ErrTooFewStores) {
			t.Errorf("Begin = %v", err)
		}
		hurt.heal()
		v.mustBackup(t, r, "b2", "", nil)
		for _, s := range r.Status(t.Context()) {
			if s.State != StoreUp || s.Owed != 0 {
				t.Errorf("%+v", s)
			}
		}
	})
	t.Run("a newer writer", func(t *testing.T) {
		hurt := c.clone()
		r := hurt.open(t)
		m := *r.membership()
		m.Version, m.MinWriter = 2, formatVersion+1
		name, object, err := r.keys.sealMembership(&m)
		if err != nil {
			t.Fatal(err)
		}
		hurt.mem[5].Replace(name, object)
		if _, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"}); !errors.Is(err, ErrVersion) {
			t.Errorf("Begin = %v", err)
		}
		mustVerify(t, v, hurt.open(t), "b1")
	})
}

func TestInitRefusals(t *testing.T) {
	three := 3
	tests := []struct {
		name string
		o    func(c *cluster) InitOptions
		err  error
		says string
	}{
		{"no stores", func(*cluster) InitOptions { return InitOptions{Data: 1, Password: password} }, ErrInvalid, "at least one"},
		{"too few stores", func(c *cluster) InitOptions {
			return InitOptions{Stores: c.stores()[:5], Data: 4, Parity: 2, Password: password}
		}, ErrInvalid, "need 6 stores, 5"},
		{"no data shard", func(c *cluster) InitOptions { return InitOptions{Stores: c.stores(), Parity: 6, Password: password} }, ErrInvalid, ""},
		{"losses", func(c *cluster) InitOptions {
			return InitOptions{Stores: c.stores(), Data: 4, Parity: 2, Losses: &three, Password: password}
		}, ErrInvalid, "0 to 2"},
		{"no password", func(c *cluster) InitOptions { return InitOptions{Stores: c.stores(), Data: 4, Parity: 2} }, ErrInvalid, "password"},
		{"twice the same", func(c *cluster) InitOptions {
			s := c.stores()
			s[1] = s[0]
			return InitOptions{Stores: s, Data: 4, Parity: 2, Password: password}
		}, ErrInvalid, "twice"},
		{"foreign content", func(c *cluster) InitOptions {
			c.mem[3].Replace("photos/1", []byte("x"))
			return InitOptions{Stores: c.stores(), Data: 4, Parity: 2, Password: password, KDF: cheapKDF}
		}, ErrNotEmpty, "photos/1"},
		{"a store down", func(c *cluster) InitOptions {
			c.faulty[3].SetDown(true)
			return InitOptions{Stores: c.stores(), Data: 4, Parity: 2, Password: password, KDF: cheapKDF}
		}, objstore.ErrDown, "mem:3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(6)
			_, err := Init(t.Context(), tt.o(c))
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Init = %v, want %v with %q", err, tt.err, tt.says)
			}
			for i, m := range c.mem {
				if n := m.Names(); len(n) > 0 && i != 3 {
					t.Errorf("left on store %d: %v", i, n)
				}
			}
		})
	}
	c := newCluster(2)
	c.init(t, 1, 1)
	_, err := Init(t.Context(), InitOptions{Stores: c.stores(), Data: 1, Parity: 1, Password: password, KDF: cheapKDF})
	if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "belongs to repository") {
		t.Errorf("second Init = %v", err)
	}
}

// Init is all or nothing, whatever fails.
func TestInitIsAllOrNothing(t *testing.T) {
	for at := int64(0); ; at++ {
		c := newCluster(3)
		var mu sync.Mutex // stores are tried at once
		n := int64(0)
		failed := false
		for _, f := range c.faulty {
			f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
				mu.Lock()
				defer mu.Unlock()
				if n++; n-1 == at && call.Op == "put" {
					failed = true
					return memstore.Down
				}
				return memstore.None
			}})
		}
		_, err := Init(t.Context(), InitOptions{Stores: c.stores(), Data: 2, Parity: 1, Password: password, KDF: cheapKDF})
		if failed != (err != nil) {
			t.Fatalf("call %d: failed %v, error %v", at, failed, err)
		}
		if err != nil {
			for _, m := range c.mem {
				if names := m.Names(); len(names) > 0 {
					t.Errorf("call %d: left %v", at, names)
				}
			}
			c.heal()
			c.init(t, 2, 1) // and it can be tried again
		}
		if n < at {
			return
		}
	}
}
