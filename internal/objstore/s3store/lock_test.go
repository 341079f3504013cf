package s3store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

// A store in a bucket that locks is a store like any other, and keeps what is
// retained, against everybody and by any name.
func TestLock(t *testing.T) {
	s3test.Keys(t)
	srv := s3test.New(t, s3test.MinIO)
	t.Run("conformance", func(t *testing.T) {
		n := 0
		storetest.Run(t, func(t *testing.T) objstore.Store {
			t.Helper()
			n++
			bucket := "locking-" + string(rune('a'+n%26)) + string(rune('a'+n/26))
			srv.LockingBucket(t, bucket)
			return open(t, srv.URL(bucket, "lock=governance"))
		})
	})
	srv.LockingBucket(t, "cairn")
	s, plain := open(t, srv.URL("cairn/p", "lock=compliance")), open(t, srv.URL("cairn/p"))
	ctx := t.Context()
	for _, name := range []string{"a", "d/b", "c"} {
		if err := s.Put(ctx, name, []byte("body of "+name)); err != nil {
			t.Fatal(err)
		}
	}
	soon := time.Now().Add(4 * time.Second)
	if err := errors.Join(s.Retain(ctx, "a", soon), s.Retain(ctx, "a", soon.Add(-time.Hour))); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "a"); !errors.Is(err, objstore.ErrRetained) {
		t.Fatalf("deleted while it is retained: %v", err)
	}
	if err := s.Put(ctx, "a", []byte("other")); !errors.Is(err, objstore.ErrExist) {
		t.Fatalf("put over what is retained: %v", err)
	}
	if got, err := s.Get(ctx, "a", 0, -1, nil); err != nil || string(got) != "body of a" {
		t.Fatalf("%q, %v", got, err)
	}
	// Somebody without lock= can hide it; that is all.
	if err := plain.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "a"); !errors.Is(err, objstore.ErrRetained) {
		t.Fatalf("deleted from behind a marker: %v", err)
	}
	if _, err := s.Stat(ctx, "a"); !errors.Is(err, objstore.ErrNotExist) {
		t.Fatalf("what was hidden came into sight by a deletion: %v", err)
	}
	first := open(t, srv.URL("cairn/p", "versions=first"))
	srv.Overwrite(t, "cairn", "p/d/b", []byte("ransom"))
	if got, err := s.Get(ctx, "d/b", 0, -1, nil); err != nil || string(got) != "ransom" {
		t.Fatalf("%q, %v", got, err)
	}
	for name, want := range map[string]string{"a": "body of a", "d/b": "body of d/b", "c": "body of c"} {
		got, err := first.Get(ctx, name, 0, -1, nil)
		size, serr := first.Stat(ctx, name)
		if err != nil || serr != nil || string(got) != want || size != int64(len(want)) {
			t.Errorf("first version of %s: %q, %d, %v, %v", name, got, size, err, serr)
		}
	}
	var names []string
	if err := first.List(ctx, "", func(i objstore.Info) error { names = append(names, i.Name); return nil }); err != nil || len(names) != 3 {
		t.Errorf("listed %v, %v", names, err)
	}
	for _, err := range []error{first.Put(ctx, "e", nil), first.Delete(ctx, "c")} {
		if !errors.Is(err, objstore.ErrDown) {
			t.Errorf("versions=first wrote: %v", err)
		}
	}
	if _, err := first.Stat(ctx, "none"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("stat of nothing: %v", err)
	}
	if err := s.Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(soon) + 2*time.Second)
	if err := s.Delete(ctx, "a"); err != nil {
		t.Fatalf("its time is over: %v", err)
	}
	if got, err := s.Get(ctx, "d/b", 0, -1, nil); err != nil || string(got) != "ransom" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := plain.Retain(ctx, "d/b", soon); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatalf("retained without lock=: %v", err)
	}
	if err := s.Retain(ctx, "none", soon); !errors.Is(err, objstore.ErrNotExist) {
		t.Fatalf("retained what is not there: %v", err)
	}
}
