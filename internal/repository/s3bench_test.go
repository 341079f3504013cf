package repository

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/retry"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// counting counts the calls of a store, of which an S3 store makes one request
// each; a listing takes one for a thousand names.
type counting struct {
	objstore.Store
	calls *atomic.Int64
}

func (c counting) Put(ctx context.Context, name string, body []byte) error {
	c.calls.Add(1)
	return c.Store.Put(ctx, name, body)
}

func (c counting) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	c.calls.Add(1)
	return c.Store.Get(ctx, name, off, n, dst)
}

func (c counting) Stat(ctx context.Context, name string) (int64, error) {
	c.calls.Add(1)
	return c.Store.Stat(ctx, name)
}

func (c counting) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	c.calls.Add(1)
	n := 0
	return c.Store.List(ctx, prefix, func(i objstore.Info) error {
		if n++; n%1000 == 0 {
			c.calls.Add(1)
		}
		return fn(i)
	})
}

func (c counting) Delete(ctx context.Context, name string) error {
	c.calls.Add(1)
	return c.Store.Delete(ctx, name)
}

// stage is a 2+2 repository whose calls are counted.
type stage struct {
	r       *Repository
	calls   atomic.Int64
	backups int
}

func newStage(b *testing.B, stores []objstore.Store) *stage {
	b.Helper()
	s := &stage{}
	for i := range stores {
		stores[i] = counting{stores[i], &s.calls}
	}
	if _, err := Init(b.Context(), InitOptions{Stores: stores, Data: 2, Parity: 2, Password: password, KDF: cheapKDF}); err != nil {
		b.Fatal(err)
	}
	var err error
	if s.r, err = Open(b.Context(), Options{Stores: stores, Password: password}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.r.Close() })
	return s
}

// run does something with 128 MiB and returns how long it took and how many
// requests a GiB would.
func (s *stage) run(do func()) (took time.Duration, perGiB float64) {
	calls, began := s.calls.Load(), time.Now()
	do()
	return time.Since(began), float64(s.calls.Load()-calls) * float64(1<<30) / float64(benchBlocks*testBlock)
}

func (s *stage) upload(b *testing.B, v *content) (time.Duration, float64) {
	b.Helper()
	s.backups++
	return s.run(func() { v.benchBackup(b, s.r, strconv.Itoa(s.backups)) })
}

func (s *stage) read(b *testing.B) (time.Duration, float64) {
	b.Helper()
	img, err := s.r.Image(b.Context(), strconv.Itoa(s.backups))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = img.Close() }()
	p := make([]byte, 1<<20)
	return s.run(func() {
		for off := int64(0); off < img.Size(); off += int64(len(p)) {
			if err := img.ReadAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkS3 stores 128 MiB and reads them back, with one worker and one reader,
// on four local S3 servers, two of each kind, and on four folders in turn: the
// share of the folders' speed that is left, and the requests for a GiB.
func BenchmarkS3(b *testing.B) {
	var folders, buckets []objstore.Store
	for i, k := range []s3test.Kind{s3test.Versitygw, s3test.MinIO, s3test.Versitygw, s3test.MinIO} {
		f, err := dirstore.Create(fmt.Sprintf("%s/%d", b.TempDir(), i), dirstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
		b.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
		srv := s3test.New(b, k)
		srv.Bucket(b, "bench")
		config, _, err := s3store.Parse(srv.URL("bench"))
		if err != nil {
			b.Fatal(err)
		}
		s, err := s3store.Open(config)
		if err != nil {
			b.Fatal(err)
		}
		folders, buckets = append(folders, f), append(buckets, retry.New(s, retry.Options{}))
	}
	onFolders, onS3 := newStage(b, folders), newStage(b, buckets)
	v := benchContent()
	var uploads, reads [2]time.Duration // folders, S3
	var put, get float64
	n := 0
	for b.Loop() {
		n++
		for i, s := range []*stage{onFolders, onS3} {
			up, perPut := s.upload(b, v)
			down, perGet := s.read(b)
			uploads[i] += up
			reads[i] += down
			put, get = perPut, perGet // S3 comes last
		}
	}
	mb := float64(n) * float64(v.size) / 1e6
	b.ReportMetric(mb/uploads[1].Seconds(), "upload-MB/s")
	b.ReportMetric(mb/reads[1].Seconds(), "read-MB/s")
	b.ReportMetric(uploads[0].Seconds()/uploads[1].Seconds(), "upload-of-folders")
	b.ReportMetric(reads[0].Seconds()/reads[1].Seconds(), "read-of-folders")
	b.ReportMetric(put, "requests/GiB-stored")
	b.ReportMetric(get, "requests/GiB-read")
}
