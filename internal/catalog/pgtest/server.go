// Package pgtest runs a real PostgreSQL for tests: the programs of Debian's
// package postgresql, on a folder and a port of their own, of loopback unless the
// test has a network for it.
package pgtest

import (
	"context"
	"crypto/rand"
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

	"github.com/jackc/pgx/v5"
)

// User is the superuser of every server.
const User = "cairn"

// Server is a running server, or one that was killed.
type Server struct {
	Addr     string // host:port, the same behind every Start
	Password string

	programs, dir string
	ip, network   string // where it listens; and who else is let in, with the password
	safe          bool
	as            *syscall.Credential // nil: this process's user
	cmd           *exec.Cmd
	log           *os.File
	ended         chan struct{} // closed when cmd has
}

var errMissing = errors.New("PostgreSQL is not installed: run scripts/tools.sh (Debian package postgresql)")

// New starts a server of the test's own, which survives a crash as one in
// production does, and ends it with the test. Where PostgreSQL is not installed the
// test is skipped; with CAIRN_CI=1 it fails.
func New(tb testing.TB) *Server {
	tb.Helper()
	return NewAt(tb, loopback, "")
}

// loopback is where servers listen.
const loopback = "127.0.0.1"

// NewAt is New on another address of this machine, ip, to which the machines of network
// connect, as in 198.51.100.0/24.
func NewAt(tb testing.TB, ip, network string) *Server {
	tb.Helper()
	s, err := newServer(tb.Context(), Server{ip: ip, network: network, safe: true})
	if err != nil {
		missing(tb, err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of PostgreSQL at %s:\n%s", s.Addr, s.tail())
		}
		if err := s.remove(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// missing ends a test for which no server could be started.
func missing(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, errMissing) {
		needs.Missing(tb, "%v", err)
	}
	tb.Fatal(err)
}

// newServer starts a server on an empty folder, with the ip, network and safety of
// like. One that is not safe acknowledges before it has written, which is several times
// as fast.
func newServer(ctx context.Context, like Server) (s *Server, err error) {
	s = &like
	if s.programs, err = find(); err != nil {
		return nil, err
	}
	s.Password = rand.Text()
	if s.as, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "cairn-postgresql-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove())
		}
	}()
	if s.log, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		return nil, err
	}
	if err = s.initialize(ctx); err != nil {
		return nil, err
	}
	// A port that was free a moment ago may be taken: then another.
	for range 5 {
		if s.Addr, err = freePort(ctx, s.ip); err != nil {
			return nil, err
		}
		if err = s.start(ctx); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// find returns the folder of the server's programs. Debian has one for each version,
// outside of PATH.
func find() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	name, err := exec.LookPath("initdb")
	if err != nil {
		return "", errMissing
	}
	name, err = filepath.EvalSymlinks(name)
	return filepath.Dir(name), err
}

// unprivileged is whom the programs run as, which refuse to run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // as this one
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uerr, gerr)
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}

// initialize makes the database cluster.
func (s *Server) initialize(ctx context.Context) error {
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(s.Password), 0o600); err != nil { //nolint:forbidigo // it need not survive
		return err
	}
	if s.as != nil {
		for _, name := range []string{s.dir, secret} {
			if err := os.Chown(name, int(s.as.Uid), int(s.as.Gid)); err != nil {
				return err
			}
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.programs, "initdb"), "--pgdata="+filepath.Join(s.dir, "data"), //nolint:gosec // of this machine
		"--username="+User, "--pwfile="+secret, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	cmd.Dir, cmd.SysProcAttr = s.dir, s.attr()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	if s.network == "" {
		return nil
	}
	hba, err := os.OpenFile(filepath.Join(s.dir, "data", "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(hba, "host all all %s scram-sha-256\n", s.network)
	return errors.Join(err, hba.Close())
}

func (s *Server) attr() *syscall.SysProcAttr {
	// Not to be left behind by a test that was killed.
	return &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL}
}

func freePort(ctx context.Context, ip string) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Start starts a server again that was killed, on what it kept.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	if err := s.start(tb.Context()); err != nil {
		tb.Fatalf("start PostgreSQL again: %v", err)
	}
}

func (s *Server) start(ctx context.Context) error {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	args := []string{
		"-D", filepath.Join(s.dir, "data"), "-h", host, "-p", port, "-c", "unix_socket_directories=", "-c", "max_connections=60",
		"-c", "shared_buffers=16MB", "-c", "restart_after_crash=off",
	}
	if !s.safe {
		args = append(args, "-F", "-c", "full_page_writes=off", "-c", "synchronous_commit=off")
	}
	cmd := exec.Command(filepath.Join(s.programs, "postgres"), args...) //nolint:gosec,noctx // the test kills it, in its own time
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = s.dir, s.attr(), s.log, s.log
	if err = cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err = s.exec(ctx, `SELECT 1`); err == nil {
			return nil
		}
		select {
		case <-ended:
			s.cmd = nil
			return fmt.Errorf("it ended: %w: %s", err, s.tail())
		case <-ctx.Done():
			return errors.Join(err, s.kill())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// exec runs a statement in the database that every server has.
func (s *Server) exec(ctx context.Context, query string) error {
	c, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, query)
	return errors.Join(err, c.Close(ctx))
}

// URL is the address of a database of the server, with the password.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", User, s.Password, s.Addr, database)
}

func (s *Server) tail() string {
	text, _ := os.ReadFile(s.log.Name())
	return strings.TrimSpace(string(text[max(0, len(text)-4096):]))
}
