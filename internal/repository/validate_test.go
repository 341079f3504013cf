package repository

import (
	"context"
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// short returns ranges that end early, hiding lists nothing.
type shortening struct{ objstore.Store }

func (s shortening) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	got, err := s.Store.Get(ctx, name, off, n, dst)
	if n > 1 && len(got) > 0 {
		got[len(got)-1] ^= 1
	}
	return got, err
}

type hiding struct{ objstore.Store }

func (h hiding) List(context.Context, string, func(objstore.Info) error) error { return nil }

func TestValidateStore(t *testing.T) {
	c, _ := fresh(t)
	before := c.mem[0].Names()
	for what, tt := range map[string]struct {
		s   objstore.Store
		fit string
	}{
		"good":        {memstore.New("a"), "everything"},
		"a member":    {c.mem[0], "everything"},
		"overwriting": {overwriting{memstore.New("b")}, "nothing"},
		"hiding":      {hiding{memstore.New("c")}, "writing"},
		"wrong bytes": {shortening{memstore.New("d")}, "nothing"},
		"down":        {memstore.WithFaults(memstore.New("e"), memstore.Faults{Decide: func(memstore.Call) memstore.Fault { return memstore.Down }}), "nothing"},
	} {
		v, err := ValidateStore(t.Context(), tt.s, nil)
		if err != nil || v.Fit() != tt.fit {
			t.Errorf("%s: fit for %s, want %s: %+v, %v", what, v.Fit(), tt.fit, v, err)
		}
		if (v.Repository != "") != (what == "a member") {
			t.Errorf("%s: of repository %q", what, v.Repository)
		}
		if m, ok := tt.s.(*memstore.Store); ok && (v.Left != nil || what == "good" && len(m.Names()) > 0 || what == "a member" && len(m.Names()) != len(before)) {
			t.Errorf("%s: left %v, %v", what, m.Names(), v.Left)
		}
	}
	m := memstore.New("f")
	f := memstore.WithFaults(m, memstore.Faults{})
	ctx, cancel := context.WithCancel(t.Context())
	f.SetFaults(memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
		if k.N == 20 {
			cancel()
		}
		return nil
	}})
	if _, err := ValidateStore(ctx, f, nil); !errors.Is(err, context.Canceled) || len(m.Names()) > 0 {
		t.Errorf("canceled: %v, left %v", err, m.Names())
	}
}
