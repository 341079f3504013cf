package s3store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

func open(t *testing.T, url string) *s3store.Store {
	t.Helper()
	c, rest, err := s3store.Parse(url)
	if err != nil || len(rest) > 0 {
		t.Fatalf("Parse(%s): %v, left %v", url, err, rest)
	}
	s, err := s3store.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// each runs a test against every kind of server, with a bucket "cairn".
func each(t *testing.T, run func(t *testing.T, srv *s3test.Server)) {
	t.Helper()
	for _, k := range []s3test.Kind{s3test.MinIO, s3test.Versitygw} {
		t.Run(string(k), func(t *testing.T) {
			s3test.Keys(t)
			srv := s3test.New(t, k)
			srv.Bucket(t, "cairn")
			run(t, srv)
		})
	}
}

func TestConformance(t *testing.T) {
	each(t, func(t *testing.T, srv *s3test.Server) {
		t.Helper()
		n := 0
		t.Run("bucket", func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) objstore.Store {
				t.Helper()
				n++
				bucket := fmt.Sprintf("bucket-%d", n)
				srv.Bucket(t, bucket)
				return open(t, srv.URL(bucket))
			})
		})
		t.Run("prefix", func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) objstore.Store {
				t.Helper()
				n++
				return open(t, srv.URL(fmt.Sprintf("cairn/a/prefix-%d", n)))
			})
		})
	})
}

// TestPages lists more than one page, and next to a prefix that begins alike.
func TestPages(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 1,100 objects")
	}
	each(t, func(t *testing.T, srv *s3test.Server) {
		t.Helper()
		s, other := open(t, srv.URL("cairn/p")), open(t, srv.URL("cairn/p-2"))
		if err := other.Put(t.Context(), "n/x", nil); err != nil {
			t.Fatal(err)
		}
		const count = 1100
		jobs := make(chan int)
		failed := make(chan error, 8)
		for range 8 {
			go func() {
				var err error
				for i := range jobs {
					// Names that sort differently by bytes and by folders.
					if e := s.Put(t.Context(), fmt.Sprintf("n/%d%s/x", i%37, []string{"", "-a", ".b"}[i%3])+strconv.Itoa(i), nil); e != nil {
						err = e
					}
				}
				failed <- err
			}()
		}
		for i := range count {
			jobs <- i
		}
		close(jobs)
		for range 8 {
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
		}
		seen := make(map[string]bool)
		err := s.List(t.Context(), "n/", func(i objstore.Info) error {
			if seen[i.Name] {
				return fmt.Errorf("%s is named twice", i.Name)
			}
			seen[i.Name] = true
			return nil
		})
		if err != nil || len(seen) != count {
			t.Errorf("List names %d of %d: %v", len(seen), count, err)
		}
	})
}

func ops(s objstore.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"put":    func(ctx context.Context) error { return s.Put(ctx, "a/b", []byte("x")) },
		"get":    func(ctx context.Context) error { _, err := s.Get(ctx, "a/b", 0, -1, nil); return err },
		"range":  func(ctx context.Context) error { _, err := s.Get(ctx, "a/b", 1, 5, nil); return err },
		"stat":   func(ctx context.Context) error { _, err := s.Stat(ctx, "a/b"); return err },
		"list":   func(ctx context.Context) error { return s.List(ctx, "", func(objstore.Info) error { return nil }) },
		"delete": func(ctx context.Context) error { return s.Delete(ctx, "a/b") },
	}
}

// mustBeDown checks that every operation answers ErrDown with a sentence, and
// without the secret.
func mustBeDown(t *testing.T, s objstore.Store, sentence string, but ...string) {
	t.Helper()
	for name, op := range ops(s) {
		err := op(t.Context())
		if strings.Contains(strings.Join(but, " "), name) && err == nil {
			continue
		}
		if !errors.Is(err, objstore.ErrDown) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("%s = %v, want ErrDown and %q", name, err, sentence)
		}
		if err != nil && strings.Contains(err.Error(), s3test.SecretKey) {
			t.Errorf("%s tells the secret: %v", name, err)
		}
	}
}

func TestDown(t *testing.T) {
	each(t, func(t *testing.T, srv *s3test.Server) {
		t.Helper()
		mustBeDown(t, open(t, srv.URL("missing")), "there is no bucket missing", "delete")
		s := open(t, srv.URL("cairn"))
		if err := s.Put(t.Context(), "a/b", []byte("body")); err != nil {
			t.Fatal(err)
		}
		t.Run("secret", func(t *testing.T) {
			t.Setenv("AWS_SECRET_ACCESS_KEY", "another-one")
			mustBeDown(t, open(t, srv.URL("cairn")), "secret key is wrong")
		})
		t.Run("key", func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
			mustBeDown(t, open(t, srv.URL("cairn")), "does not know the access key")
		})
		t.Run("profile", func(t *testing.T) {
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
			t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
			mustBeDown(t, open(t, srv.URL("cairn", "profile=backup")), "profile backup of the shared credentials file cannot be used")
		})
		srv.Kill(t)
		mustBeDown(t, s, "it cannot be reached")
		srv.Start(t)
		if got, err := s.Get(t.Context(), "a/b", 0, -1, nil); err != nil || string(got) != "body" {
			t.Errorf("behind a restart: %q, %v", got, err)
		}
	})
}

func TestProfile(t *testing.T) {
	s3test.Keys(t)
	srv := s3test.New(t, s3test.Versitygw)
	srv.Bucket(t, "cairn")
	t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
	file := filepath.Join(t.TempDir(), "credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = x\naws_secret_access_key = y\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3test.AccessKey, s3test.SecretKey)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	s := open(t, srv.URL("cairn", "profile=backup"))
	if err := s.Put(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
}

// TestBadLines puts a proxy between that breaks connections: whatever happens,
// a Put is all or nothing, and nobody gets wrong bytes without an error that
// the line could have caused.
func TestBadLines(t *testing.T) {
	each(t, func(t *testing.T, srv *s3test.Server) {
		t.Helper()
		p := s3test.NewProxy(t, srv.Addr)
		s := open(t, s3test.URL(p.Addr, "cairn"))
		honest := open(t, srv.URL("cairn"))
		body := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		if err := s.Put(t.Context(), "whole", body); err != nil {
			t.Fatal(err)
		}

		p.Set(s3test.Trouble{CutFrom: 200 << 10})
		err := s.Put(t.Context(), "cut", body)
		if err == nil || errors.Is(err, objstore.ErrDown) {
			t.Errorf("a Put that was cut = %v, want an open outcome", err)
		}
		if _, err = honest.Stat(t.Context(), "cut"); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("half a Put left something: %v", err)
		}

		p.Set(s3test.Trouble{CutTo: 200 << 10})
		if got, gerr := s.Get(t.Context(), "whole", 0, -1, []byte("kept")); gerr == nil || string(got) != "kept" {
			t.Errorf("a Get that was cut = %d bytes, %v", len(got), gerr)
		}

		p.Set(s3test.Trouble{Hang: true})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err = s.Put(ctx, "hangs", body)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a Put without an answer = %v", err)
		}
		for i := range body { // the race detector sees whoever still reads it
			body[i] = 'x'
		}
		p.Set(s3test.Trouble{})
		if err = s.Put(t.Context(), "hangs", []byte("other")); err != nil && !errors.Is(err, objstore.ErrExist) {
			t.Errorf("Put once more: %v", err)
		}

		p.Set(s3test.Trouble{Refuse: true})
		if _, err = s.Stat(t.Context(), "whole"); err == nil || errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("Stat through a refusing proxy = %v", err)
		}
	})
}
