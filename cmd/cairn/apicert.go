package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certEvery is how often handshakes look whether the certificate of the API was replaced.
const certEvery = 5 * time.Second

// keyPair is a certificate and its key in files, which may be replaced while it is used.
type keyPair struct {
	cert, key string
	every     time.Duration // between two looks
	log       *slog.Logger

	pair atomic.Pointer[tls.Certificate]

	mu     sync.Mutex // held by the handshake that looks; the others take what is there
	looked time.Time
	files  [2]os.FileInfo // that pair was read from
	told   string         // why the files cannot be used; empty = they can
}

// newKeyPair reads the files.
func newKeyPair(cert, key string, every time.Duration, log *slog.Logger) (*keyPair, error) {
	p := &keyPair{cert: cert, key: key, every: every, log: log}
	return p, p.read()
}

// read reads the files. They are looked at before: one that is written meanwhile is
// another at the next look.
func (p *keyPair) read() error {
	files, err := p.stat()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		return err
	}
	p.pair.Store(&pair)
	p.files, p.looked = files, time.Now()
	return nil
}

func (p *keyPair) stat() (files [2]os.FileInfo, err error) {
	cert, err := os.Stat(p.cert)
	key, kerr := os.Stat(p.key)
	return [2]os.FileInfo{cert, key}, errors.Join(err, kerr)
}

// get returns the certificate for a handshake. What the files have meanwhile takes its
// place if it is a certificate and the key of it; else the old one stays, and why is
// logged once.
func (p *keyPair) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if p.mu.TryLock() {
		defer p.mu.Unlock()
		if time.Since(p.looked) >= p.every {
			p.look(hello.Context())
		}
	}
	return p.pair.Load(), nil
}

// look reads the files again if they changed; p.mu is held. Those that could not be used
// are tried each time: a write of the same length may have the same time.
func (p *keyPair) look(ctx context.Context) {
	p.looked = time.Now()
	files, err := p.stat()
	if err == nil {
		if p.told == "" && same(files[0], p.files[0]) && same(files[1], p.files[1]) {
			return
		}
		err = p.read()
	}
	where := slog.Group("", slog.String("certificate", p.cert), slog.String("key", p.key))
	switch {
	case err == nil:
		p.told = ""
		p.log.LogAttrs(ctx, slog.LevelInfo, "the certificate of the API was read again", where)
	case err.Error() != p.told:
		p.told = err.Error()
		p.log.LogAttrs(ctx, slog.LevelError, "the new certificate of the API cannot be used: the old one stays, put a certificate and its key there", where, slog.Any("error", err))
	}
}

// same says whether a file is the one that was looked at, unchanged.
func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
