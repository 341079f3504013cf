// Package s3store keeps objects in a bucket of an S3 server: Amazon's, or one
// that speaks the same protocol and creates objects conditionally (MinIO,
// versitygw, Ceph, …).
//
// The object NAME is the key PREFIX/NAME. A Put is one request with If-None-Match
// and the SHA-256 of the body, which the server checks; there are no multipart
// uploads, so that nothing half is ever left behind. Nothing is made but
// objects: a bucket that is not there is a store that is down.
//
// This package tries nothing twice. What may be tried again its errors tell;
// package retry does it. URL.md is the grammar of a store's URL.
package s3store

import (
	"context"
	"crypto/md5" //nolint:gosec // the protocol's
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Store is an objstore.Store in a bucket.
type Store struct {
	config Config
	url    string
	client *minio.Client
	core   minio.Core
	http   *http.Transport
}

var _ objstore.Store = (*Store)(nil)

// Open returns the store that c names. The server is not asked, and need not be
// reachable; credentials are looked for when they are needed.
func Open(c Config) (*Store, error) {
	roots, err := authorities(c.CA)
	if err != nil {
		return nil, err
	}
	s := &Store{config: c, url: c.String(), http: transport(roots)}
	lookup := map[Style]minio.BucketLookupType{Path: minio.BucketLookupPath, Host: minio.BucketLookupDNS}[c.Style]
	s.client, err = minio.New(c.host(), &minio.Options{
		Creds: newChain(c.Profile), Secure: !c.Insecure, Transport: bounded{s.http},
		Region: c.region(), BucketLookup: lookup, MaxRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", s.url, plain(err), ErrURL)
	}
	s.core = minio.Core{Client: s.client}
	return s, nil
}

// region is the one that requests are signed for. Empty, at Amazon, lets the
// client ask where the bucket is.
func (c Config) region() string {
	for _, r := range []string{c.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if r != "" {
			return r
		}
	}
	if c.Endpoint == "" {
		return ""
	}
	return defaultRegion
}

// URL implements objstore.Store: bucket, prefix and endpoint.
func (s *Store) URL() string { return s.url }

// Close implements objstore.Store.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

func (s *Store) key(name string) string { return s.config.dir() + name }

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, name string, body []byte) error {
	if err := begin(ctx, name); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if len(body) > objstore.MaxObject {
		return fmt.Errorf("put %s: %d bytes: %w", name, len(body), objstore.ErrTooLarge)
	}
	if s.config.First {
		return s.readOnly("put", name)
	}
	sum, md5sum := sha256.Sum256(body), ""
	if s.config.Lock != "" {
		// Servers want it for buckets that lock objects.
		m := md5.Sum(body) //nolint:gosec // the protocol's
		md5sum = base64.StdEncoding.EncodeToString(m[:])
	}
	o := &op{body: &payload{body: body}}
	defer o.body.end()
	// Without the streaming signature, which sends the body in signed pieces:
	// one sum over all says the same, and every server understands it.
	opts := minio.PutObjectOptions{DisableContentSha256: true, DisableMultipart: true}
	opts.SetMatchETagExcept("*")
	info, err := s.core.PutObject(o.in(ctx), s.config.Bucket, s.key(name), o.body.reader(), int64(len(body)), md5sum, hex.EncodeToString(sum[:]), opts)
	if err != nil {
		return s.fail(ctx, o, "put", name, err)
	}
	if info.ETag == "" {
		return fmt.Errorf("put %s in %s: %w: an answer without an ETag", name, s.url, errNoS3)
	}
	return nil
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return dst, fmt.Errorf("get: %w", err)
	}
	if off < 0 {
		return dst, fmt.Errorf("get %s in %s: offset %d: %w", name, s.url, off, objstore.ErrRange)
	}
	if n > objstore.MaxObject {
		return dst, fmt.Errorf("get %s: %d bytes: %w", name, n, objstore.ErrTooLarge)
	}
	if n == 0 {
		// S3 has no empty ranges.
		return dst, s.reaches(ctx, name, off)
	}
	out, err := s.read(ctx, name, off, n, dst)
	if n < 0 && off > 0 && errors.Is(err, objstore.ErrRange) {
		// Behind the last byte, which is right exactly at the end.
		return dst, s.reaches(ctx, name, off)
	}
	if err != nil {
		return dst, err
	}
	return out, nil
}

// reaches says whether the object has off bytes or more.
func (s *Store) reaches(ctx context.Context, name string, off int64) error {
	size, err := s.Stat(ctx, name)
	if err != nil {
		return err
	}
	if off > size {
		return fmt.Errorf("get %s in %s: offset %d of %d bytes: %w", name, s.url, off, size, objstore.ErrRange)
	}
	return nil
}

// read gets a range that is not empty.
func (s *Store) read(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	o := &op{long: true}
	a, err := s.open(o.in(ctx), name, off, n)
	if err != nil {
		return dst, s.fail(ctx, o, "get", name, err)
	}
	out, err := a.into(dst, off, n)
	if err = errors.Join(err, a.body.Close()); err != nil {
		if errors.Is(err, objstore.ErrRange) || errors.Is(err, objstore.ErrTooLarge) {
			return dst, fmt.Errorf("get %s in %s: %w", name, s.url, err)
		}
		return dst, s.fail(ctx, o, "get", name, err)
	}
	return out, nil
}

// answer is an object, or a part of one, on its way.
type answer struct {
	body  io.ReadCloser
	size  int64 // of the object; -1 = not told
	first int64 // offset of the first byte
	n     int64 // bytes that come; -1 = not told
}

func (s *Store) open(ctx context.Context, name string, off, n int64) (answer, error) {
	var opts minio.GetObjectOptions
	switch {
	case n > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	case off > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	if s.config.First {
		v, err := s.first(ctx, name)
		if err != nil {
			return answer{}, err
		}
		opts.VersionID = v.VersionID
	}
	body, info, h, err := s.core.GetObject(ctx, s.config.Bucket, s.key(name), opts)
	if err != nil {
		return answer{}, err //nolint:wrapcheck // fail does
	}
	a := answer{body: body, size: info.Size, n: info.Size}
	if h.Get("Content-Range") != "" {
		if a.first, a.size, err = contentRange(h.Get("Content-Range")); err != nil {
			return answer{}, errors.Join(err, body.Close())
		}
	}
	return a, nil
}

// contentRange reads "bytes FIRST-LAST/SIZE"; a size that is not told is -1.
func contentRange(v string) (first, size int64, err error) {
	bad := fmt.Errorf("the server sends a range %q that cannot be read", clip(v))
	span, total, ok := strings.Cut(strings.TrimPrefix(v, "bytes "), "/")
	from, _, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return 0, 0, bad
	}
	if first, err = strconv.ParseInt(from, 10, 64); err != nil || first < 0 {
		return 0, 0, bad
	}
	if total == "*" {
		return first, -1, nil
	}
	if size, err = strconv.ParseInt(total, 10, 64); err != nil || size < 0 {
		return 0, 0, bad
	}
	return first, size, nil
}

// into appends what was asked for to dst.
func (a answer) into(dst []byte, off, n int64) ([]byte, error) {
	if a.first != off {
		return dst, fmt.Errorf("the server sends from byte %d, asked for %d: does it know ranges?", a.first, off)
	}
	want := n
	switch {
	case n < 0 && a.n < 0:
		return dst, errors.New("the server does not say how long the object is")
	case n < 0:
		want = a.n
	case a.size >= 0 && a.size < off+n:
		return dst, fmt.Errorf("%d bytes from %d of %d: %w", n, off, a.size, objstore.ErrRange)
	}
	if want > objstore.MaxObject {
		return dst, fmt.Errorf("%d bytes: %w", want, objstore.ErrTooLarge)
	}
	have := len(dst)
	if int64(cap(dst)-have) < want {
		grown := make([]byte, have, have+int(want))
		copy(grown, dst)
		dst = grown
	}
	if _, err := io.ReadFull(a.body, dst[have:have+int(want)]); err != nil {
		return dst[:have], fmt.Errorf("read: %w", err)
	}
	var extra [1]byte
	if m, err := a.body.Read(extra[:]); m != 0 || !errors.Is(err, io.EOF) {
		return dst[:have], errors.New("the server sends more than was asked for")
	}
	return dst[:have+int(want)], nil
}

// Stat implements objstore.Store. It asks for the first byte: the answer to a
// HEAD has no body, and could not tell an object that is not there from a bucket
// that is not.
func (s *Store) Stat(ctx context.Context, name string) (int64, error) {
	if err := begin(ctx, name); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	o := &op{long: true}
	a, err := s.open(o.in(ctx), name, 0, 1)
	if err == nil {
		// One byte, if the server knows ranges: then the connection stays.
		_, err = io.CopyN(io.Discard, a.body, 2)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		err = errors.Join(err, a.body.Close())
	}
	if err == nil && a.size >= 0 {
		return a.size, nil
	}
	if err != nil {
		err = s.fail(ctx, o, "stat", name, err)
		if !errors.Is(err, objstore.ErrRange) {
			return 0, err
		}
	}
	// An empty object, most likely.
	o = &op{list: s.config.First}
	if s.config.First {
		v, ferr := s.first(o.in(ctx), name)
		if ferr != nil {
			return 0, s.fail(ctx, o, "stat", name, ferr)
		}
		return v.Size, nil
	}
	info, err := s.client.StatObject(o.in(ctx), s.config.Bucket, s.key(name), minio.StatObjectOptions{})
	if err != nil {
		return 0, s.fail(ctx, o, "stat", name, err)
	}
	return info.Size, nil
}

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if err := objstore.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	no := false
	o := &op{list: true}
	// A server whose pages lead in a circle would be listed for ever: a mark is
	// put down ever farther apart, and comes by again.
	mark, seen := "", 0
	all := s.client.ListObjectsIter(o.in(ctx), s.config.Bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, FetchOwner: &no})
	if s.config.First {
		all = s.firsts(o.in(ctx), prefix)
	}
	for info := range all {
		if info.Err != nil {
			return s.fail(ctx, o, "list", strconv.Quote(prefix), info.Err)
		}
		if info.Key == mark {
			return fmt.Errorf("list %q in %s: the server names %q again and again", prefix, s.url, clip(mark))
		}
		if seen++; seen&(seen-1) == 0 {
			mark = info.Key
		}
		name, ours := strings.CutPrefix(info.Key, s.config.dir())
		if !ours || !strings.HasPrefix(name, prefix) || info.Size < 0 || objstore.CheckName(name) != nil {
			continue // another tool's
		}
		if err := fn(objstore.Info{Name: name, Size: info.Size}); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %q in %s: %w", prefix, s.url, err)
	}
	return nil
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	switch {
	case s.config.First:
		return s.readOnly("delete", name)
	case s.config.Lock != "":
		return s.deleteVersions(ctx, name)
	}
	o := &op{}
	err := s.client.RemoveObject(o.in(ctx), s.config.Bucket, s.key(name), minio.RemoveObjectOptions{})
	if err == nil {
		return nil
	}
	if err = s.fail(ctx, o, "delete", name, err); errors.Is(err, objstore.ErrNotExist) {
		return nil
	}
	return err
}

func begin(ctx context.Context, name string) error {
	if err := objstore.CheckName(name); err != nil {
		return err //nolint:wrapcheck // the caller does
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
