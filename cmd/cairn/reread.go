package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// rereadEvery is how often it is looked whether files were replaced that are in use. It is a
// variable for tests.
var rereadEvery = 5 * time.Second

// reread is what was read from files that may be replaced while it is used.
type reread[T any] struct {
	what  string // for the log, such as "certificate of the API"
	files []string
	load  func() (T, error)
	every time.Duration // between two looks
	log   *slog.Logger

	value atomic.Pointer[T]

	mu     sync.Mutex // held by whoever looks; the others take what is there
	looked time.Time
	found  []os.FileInfo // that value was read from
	told   string        // why the files cannot be used; empty = they can
}

// newReread reads the files, by load.
func newReread[T any](what string, log *slog.Logger, every time.Duration, load func() (T, error), files ...string) (*reread[T], error) {
	r := &reread[T]{what: what, files: files, load: load, every: every, log: log}
	return r, r.read()
}

// read reads the files. They are looked at before: one that is written meanwhile is
// another at the next look.
func (r *reread[T]) read() error {
	found, err := r.stat()
	if err != nil {
		return err
	}
	v, err := r.load()
	if err != nil {
		return err
	}
	r.value.Store(&v)
	r.found, r.looked = found, time.Now()
	return nil
}

func (r *reread[T]) stat() ([]os.FileInfo, error) {
	var found []os.FileInfo
	var errs []error
	for _, name := range r.files {
		fi, err := os.Stat(name)
		found, errs = append(found, fi), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// get returns what there is. What the files have meanwhile takes its place if it can be
// used; else the old one stays, and why is logged once.
func (r *reread[T]) get(ctx context.Context) T {
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		if time.Since(r.looked) >= r.every {
			r.look(ctx)
		}
	}
	return *r.value.Load()
}

// forHandshake is get for crypto/tls.
func (r *reread[T]) forHandshake(hello *tls.ClientHelloInfo) (T, error) { //nolint:unparam // crypto/tls wants an error
	return r.get(hello.Context()), nil
}

// look reads the files again if they changed; r.mu is held. Those that could not be used
// are tried each time: a write of the same length may have the same time.
func (r *reread[T]) look(ctx context.Context) {
	r.looked = time.Now()
	found, err := r.stat()
	if err == nil {
		if r.told == "" && same(found, r.found) {
			return
		}
		err = r.read()
	}
	where := slog.Group("", slog.String("what", r.what), slog.String("files", strings.Join(r.files, " ")))
	switch {
	case err == nil:
		r.told = ""
		r.log.LogAttrs(ctx, slog.LevelInfo, "files were replaced, and what they have is used from now on", where)
	case err.Error() != r.told:
		r.told = err.Error()
		r.log.LogAttrs(ctx, slog.LevelError, "files were replaced, and what they have cannot be used: the old stays until that is mended", where, slog.Any("error", err))
	}
}

// same says whether files are those that were looked at, unchanged.
func same(a, b []os.FileInfo) bool {
	for i := range a {
		if !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return len(a) == len(b)
}

// newKeyPair reads a certificate and its key, and again when they are replaced.
func newKeyPair(what, cert, key string, every time.Duration, log *slog.Logger) (*reread[*tls.Certificate], error) {
	return newReread(what, log, every, func() (*tls.Certificate, error) {
		return loadKeyPair(cert, key)
	}, cert, key)
}

// loadKeyPair reads a certificate and its key.
func loadKeyPair(cert, key string) (*tls.Certificate, error) {
	c, err := readSmall(cert)
	if err != nil {
		return nil, err
	}
	k, err := readSmall(key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(c, k)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	return &pair, nil
}
