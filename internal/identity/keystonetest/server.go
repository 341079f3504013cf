// Package keystonetest runs a real Keystone for tests: the programs of Debian's
// package python3-keystone, with SQLite in a folder and a loopback port of their own.
package keystonetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	_ "modernc.org/sqlite" // for the database of Keystone
)

// The administrator of every server, in a project of the same name.
const (
	Admin    = "admin"
	Password = "secret"
)

const settings = `[DEFAULT]
log_file = DIR/keystone.log
[database]
connection = sqlite:///DIR/keystone.db
[fernet_tokens]
key_repository = DIR/keys
[fernet_receipts]
key_repository = DIR/keys
[credential]
key_repository = DIR/keys
[identity]
password_hash_rounds = 4
[token]
expiration = SECONDS
`

// Server is a running Keystone, or one that was stopped.
type Server struct {
	URL string // without /v3; the same behind every Start

	dir, serve string
	port       int
	cmd        *exec.Cmd
	out        *os.File      // what it prints: a line for each request
	ended      chan struct{} // closed when cmd has
}

// New starts a server, which ends with the test. Where Keystone is not installed the
// test is skipped; with CAIRN_CI=1 it fails.
func New(tb testing.TB) *Server {
	tb.Helper()
	manage, err := exec.LookPath("keystone-manage")
	serve, serr := exec.LookPath("keystone-wsgi-public")
	if err = errors.Join(err, serr); err != nil {
		needs.Missing(tb, "Keystone is not installed: run scripts/tools.sh (Debian package python3-keystone)")
	}
	s := &Server{dir: tb.TempDir(), serve: serve}
	if s.out, err = os.Create(filepath.Join(s.dir, "out")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			text, rerr := os.ReadFile(s.out.Name())
			tb.Logf("Keystone printed, %v:\n%s", rerr, text[max(0, len(text)-8192):])
		}
		if cerr := errors.Join(s.stop(), s.out.Close()); cerr != nil {
			tb.Error(cerr)
		}
	})
	if err = s.setUp(tb.Context(), manage); err == nil {
		err = s.start(tb.Context())
	}
	if err != nil {
		tb.Fatalf("start Keystone: %v", err)
	}
	return s
}

// setUp makes the folder: settings, keys, and a database with the administrator.
func (s *Server) setUp(ctx context.Context, manage string) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		return err
	}
	if err = os.Mkdir(filepath.Join(s.dir, "keys"), 0o700); err != nil {
		return err
	}
	if err = s.configure(time.Hour); err != nil {
		return err
	}
	// Its own catalog says where it is, so that the port is chosen now.
	if s.port, err = freePort(ctx); err != nil {
		return err
	}
	s.URL = "http://" + s.addr()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"db_sync"},
		{"fernet_setup", "--keystone-user", me.Username, "--keystone-group", group.Name},
		{"bootstrap", "--bootstrap-password", Password, "--bootstrap-public-url", s.URL + "/v3", "--bootstrap-region-id", "RegionOne"},
	} {
		cmd := exec.CommandContext(ctx, manage, append([]string{"--config-file", s.conf()}, args...)...) //nolint:gosec // of this machine
		cmd.Dir, cmd.Env = s.dir, s.env()
		if out, rerr := cmd.CombinedOutput(); rerr != nil {
			return fmt.Errorf("keystone-manage %s: %w: %s", args[0], rerr, out)
		}
	}
	return s.neverLocked(ctx)
}

// configure writes the settings.
func (s *Server) configure(tokens time.Duration) error {
	text := strings.NewReplacer("DIR", s.dir, "SECONDS", strconv.Itoa(int(tokens/time.Second))).Replace(settings)
	return os.WriteFile(s.conf(), []byte(text), 0o600) //nolint:forbidigo // it need not survive
}

// neverLocked lets Keystone write to its SQLite file while a reader of its own has not
// let go: otherwise it now and then answers with 500.
func (s *Server) neverLocked(ctx context.Context) error {
	db, err := sql.Open("sqlite", filepath.Join(s.dir, "keystone.db"))
	if err != nil {
		return err
	}
	var mode string
	err = db.QueryRowContext(ctx, "PRAGMA journal_mode=WAL").Scan(&mode)
	if err = errors.Join(err, db.Close()); err == nil && mode != "wal" {
		err = fmt.Errorf("the database of Keystone stays in mode %s", mode)
	}
	return err
}

func (s *Server) conf() string { return filepath.Join(s.dir, "keystone.conf") }

func (s *Server) env() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "LC_ALL=C.UTF-8"}
}

func (s *Server) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func freePort(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.Join(fmt.Errorf("%v has no port", l.Addr()), l.Close())
	}
	return addr.Port, l.Close()
}

// Stop ends the server at once; what it has written stays.
func (s *Server) Stop(tb testing.TB) {
	tb.Helper()
	if err := s.stop(); err != nil {
		tb.Fatalf("stop Keystone: %v", err)
	}
}

func (s *Server) stop() error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-s.ended
	s.cmd = nil
	return err
}

// Start starts a server again that was stopped. Tokens that it issues from now on last
// as long as is said.
func (s *Server) Start(tb testing.TB, tokens time.Duration) {
	tb.Helper()
	err := s.configure(tokens)
	if err == nil {
		err = s.start(tb.Context())
	}
	if err != nil {
		tb.Fatalf("start Keystone again: %v", err)
	}
}

// start returns when the server answers.
func (s *Server) start(ctx context.Context) error {
	cmd := exec.Command(s.serve, "--host", "127.0.0.1", "--port", strconv.Itoa(s.port), "--", "--config-file", s.conf()) //nolint:gosec,noctx // the test kills it, in its own time
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env(), s.out, s.out
	// Not to be left behind by a test that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", s.addr())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			s.cmd = nil
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return errors.Join(err, s.stop())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Requests is how many requests the server has answered that begin so, such as
// "GET /v3/auth/tokens".
func (s *Server) Requests(tb testing.TB, prefix string) int {
	tb.Helper()
	text, err := os.ReadFile(s.out.Name())
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Count(string(text), `"`+prefix)
}
