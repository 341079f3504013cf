// Package s3test runs real S3 servers for tests: MinIO and versitygw, in the
// versions that scripts/tools.sh builds.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// The keys of every server. They open nothing but a test's own folder.
const (
	AccessKey = "cairn-test"
	SecretKey = "cairn-test-secret" //nolint:gosec // it opens nothing
)

// Kind is a server program.
type Kind string

// Kinds.
const (
	MinIO     Kind = "minio"
	Versitygw Kind = "versitygw"
)

// Server is a running server, or one that was killed.
type Server struct {
	Kind Kind
	Addr string // host:port, the same behind every Start

	program, dir string
	cmd          *exec.Cmd
	log          *os.File
}

// New starts a server on an empty folder, and ends it with the test. Where its
// program was not built the test is skipped; with CAIRN_CI=1 it fails.
func New(tb testing.TB, k Kind) *Server {
	tb.Helper()
	program := filepath.Join(tools(), string(k))
	if _, err := os.Stat(program); err != nil {
		needs.Missing(tb, "%s is not built: run scripts/tools.sh (%v)", k, err)
	}
	s := &Server{Kind: k, program: program, dir: tb.TempDir()}
	var err error
	if s.log, err = os.Create(filepath.Join(tb.TempDir(), "log")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.Kill(tb)
		if tb.Failed() {
			text, _ := os.ReadFile(s.log.Name())
			tb.Logf("log of %s at %s:\n%s", s.Kind, s.Addr, tail(text))
		}
		_ = s.log.Close()
	})
	// A port that was free a moment ago may be taken: then another.
	for range 5 {
		if s.Addr, err = freePort(tb.Context()); err != nil {
			break
		}
		if err = s.start(tb.Context()); err == nil {
			return s
		}
	}
	tb.Fatalf("start %s: %v", k, err)
	return nil
}

// tools is where scripts/tools.sh puts programs.
func tools() string {
	if dir := os.Getenv("CAIRN_TOOLS"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir() // $XDG_CACHE_HOME, or .cache
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "cairn-tools")
}

func tail(text []byte) []byte { return text[max(0, len(text)-4096):] }

func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Start starts a server again that was killed, on what it kept.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	if err := s.start(tb.Context()); err != nil {
		tb.Fatalf("start %s again: %v", s.Kind, err)
	}
}

func (s *Server) start(ctx context.Context) error {
	cmd := exec.Command(s.program, s.arguments()...) //nolint:gosec,noctx // the test kills it, in its own time
	cmd.Env = append(os.Environ(),
		"ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey,
		"MINIO_ROOT_USER="+AccessKey, "MINIO_ROOT_PASSWORD="+SecretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1")
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.Dir = s.dir
	// Not to be left behind by a test that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd = cmd
	client, err := s.client()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(errEnded, cmd.Wait()) }()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = client.ListBuckets(ctx); err == nil {
			return nil
		}
		select {
		case err = <-ended:
			s.cmd = nil
			text, _ := os.ReadFile(s.log.Name())
			return fmt.Errorf("it ended: %w: %s", err, tail(text))
		case <-ctx.Done():
			return errors.Join(err, s.kill()) //nolint:contextcheck // the context has ended
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) arguments() []string {
	if s.Kind == Versitygw {
		return []string{"--port", s.Addr, "--quiet", "posix", s.dir}
	}
	return []string{"server", "--quiet", "--address", s.Addr, s.dir}
}

var errEnded = errors.New("server program has ended")

// Kill ends the server at once, as a power failure would; what it keeps stays.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	if err := s.kill(); err != nil {
		tb.Errorf("kill %s: %v", s.Kind, err)
	}
}

func (s *Server) kill() error {
	if s.cmd == nil {
		return nil
	}
	cmd := s.cmd
	s.cmd = nil
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	// The port is free again when nobody answers there.
	for range 500 {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(context.Background(), "tcp", s.Addr)
		if err != nil {
			return nil //nolint:nilerr // that nobody answers is what is wanted
		}
		_ = c.Close()
		<-time.After(10 * time.Millisecond)
	}
	return errors.New("it answers still")
}

// Wipe removes what the server keeps. It has to be killed.
func (s *Server) Wipe(tb testing.TB) {
	tb.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			tb.Fatal(err)
		}
	}
}

// Bucket makes a bucket.
func (s *Server) Bucket(tb testing.TB, name string) {
	tb.Helper()
	s.bucket(tb, name, minio.MakeBucketOptions{})
}

// LockingBucket makes a bucket whose objects can be retained.
func (s *Server) LockingBucket(tb testing.TB, name string) {
	tb.Helper()
	s.bucket(tb, name, minio.MakeBucketOptions{ObjectLocking: true})
}

func (s *Server) bucket(tb testing.TB, name string, o minio.MakeBucketOptions) {
	tb.Helper()
	c, err := s.client()
	if err == nil {
		err = c.MakeBucket(tb.Context(), name, o)
	}
	if err != nil {
		tb.Fatalf("make bucket %s at %s: %v", name, s.Kind, err)
	}
}

// Overwrite puts an object in the place of another, as Cairn never does.
func (s *Server) Overwrite(tb testing.TB, bucket, key string, body []byte) {
	tb.Helper()
	c, err := s.client()
	if err == nil {
		_, err = c.PutObject(tb.Context(), bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{})
	}
	if err != nil {
		tb.Fatalf("overwrite %s at %s: %v", key, s.Kind, err)
	}
}

// RemoveBucket removes an empty bucket.
func (s *Server) RemoveBucket(tb testing.TB, name string) {
	tb.Helper()
	c, err := s.client()
	if err == nil {
		err = c.RemoveBucket(tb.Context(), name)
	}
	if err != nil {
		tb.Fatalf("remove bucket %s at %s: %v", name, s.Kind, err)
	}
}

func (s *Server) client() (*minio.Client, error) {
	return minio.New(s.Addr, &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: "us-east-1", MaxRetries: 1})
}

// URL is the URL of a store in a bucket of the server, with more parameters.
func (s *Server) URL(place string, parameters ...string) string {
	return URL(s.Addr, place, parameters...)
}

// URL is the URL of a store at an address: place is BUCKET or BUCKET/PREFIX.
func URL(addr, place string, parameters ...string) string {
	return "s3://" + place + "?" + strings.Join(append([]string{"endpoint=http://" + addr}, parameters...), "&")
}

// Keys puts the servers' keys where clients look for them.
func Keys(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	for _, name := range []string{"AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
}
