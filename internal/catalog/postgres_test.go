package catalog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
)

// What was acknowledged before the server was killed is there when it is back, and
// the catalog goes on without being opened again.
func TestKilledServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a server's recovery")
	}
	server := pgtest.New(t)
	c := openTest(t, server.URL("postgres"))
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var denied atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				id := fmt.Sprint(i, "-", k)
				var err error
				if i%2 == 0 {
					err = c.AddBackup(t.Context(), Backup{ID: id, Project: "p", Status: Creating}, nil)
				} else {
					err = c.PutJob(t.Context(), Job{ID: id, State: Queued})
				}
				switch {
				case err == nil:
					mu.Lock()
					acknowledged[id] = i%2 == 0
					mu.Unlock()
				case errors.Is(err, ErrUnavailable):
					denied.Add(1)
					<-time.After(5 * time.Millisecond)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acknowledged) }
	for range 3 {
		for n := count(); count() < n+40; {
			<-time.After(time.Millisecond)
		}
		server.Kill(t)
		// At least one call finds nobody there.
		for n := denied.Load(); denied.Load() == n; {
			<-time.After(time.Millisecond)
		}
		server.Start(t)
	}
	for n := count(); count() < n+40; {
		<-time.After(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if denied.Load() == 0 {
		t.Error("nobody noticed")
	}
	lost := 0
	for id, backup := range acknowledged {
		var err error
		if backup {
			_, err = c.Backup(t.Context(), id)
		} else {
			_, err = c.Job(t.Context(), id)
		}
		if err != nil {
			lost++
			t.Errorf("%s: %v", id, err)
		}
	}
	t.Logf("%d writes acknowledged, %d lost, %d denied", len(acknowledged), lost, denied.Load())
}

func TestUnavailable(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts, and says nothing
	for name, where := range map[string]string{
		"nobody listens":  "postgres://u:hunter2@127.0.0.1:1/db",
		"nobody answers":  "postgres://u:hunter2@" + l.Addr().String() + "/db?connect_timeout=1",
		"no such machine": "postgres://u:hunter2@no-such-machine.invalid/db",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Open(t.Context(), where)
			if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "postgres://u@") || strings.Contains(err.Error(), "\n") {
				t.Error(err)
			}
			t.Log(err)
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	// A caller that goes away says nothing about the database.
	c := openTest(t, postgresTest(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Backups(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("canceled: %v", err)
	}
}

// A statement that takes too long ends, and says that the database does not answer.
func TestStatementTimeout(t *testing.T) {
	where := postgresTest(t)
	c := openTest(t, where+"&statement_timeout=300")
	other := openTest(t, where)
	tx, err := other.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err = tx.ExecContext(t.Context(), `LOCK TABLE jobs`); err != nil {
		t.Fatal(err)
	}
	if err = c.PutJob(t.Context(), Job{ID: "j"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("behind a lock: %v", err)
	}
	// Nor does one wait for a server that says nothing at all.
	d := *other.d
	d.timeout = 300 * time.Millisecond
	silent := *other
	silent.d = &d
	if err = silent.PutJob(t.Context(), Job{ID: "j"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without an answer: %v", err)
	}
	must(t, tx.Rollback(), c.PutJob(t.Context(), Job{ID: "j"}), silent.PutJob(t.Context(), Job{ID: "j"}))
}

// Each session has its limits, its texts and its durability, whatever the server's
// defaults are.
func TestSession(t *testing.T) {
	where := postgresTest(t)
	openTest(t, where)
	c := openTest(t, where+"&default_transaction_isolation=serializable")
	for name, want := range map[string]string{"statement_timeout": "30s", "idle_in_transaction_session_timeout": "30s", "application_name": "cairn", "synchronous_commit": "on"} {
		var got string
		// The tests' own server has it off.
		if qerr := c.db.QueryRowContext(t.Context(), `SELECT current_setting($1)`, name).Scan(&got); qerr != nil || got != want {
			t.Errorf("%s is %s, %v", name, got, qerr)
		}
	}
	err := c.tx(t.Context(), "look", func(ctx context.Context, q conn) error {
		var level string
		if qerr := q.row(ctx, []any{&level}, `SELECT current_setting('transaction_isolation')`); qerr != nil || level != "read committed" {
			return fmt.Errorf("%s, %w", level, qerr)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n := c.db.Stats().MaxOpenConnections; n != pgConnections {
		t.Errorf("%d connections", n)
	}
}

// Two transactions that take two records in opposite order: one is undone and done again.
func TestDeadlock(t *testing.T) {
	c := openTest(t, postgresTest(t))
	must(t, c.PutJob(t.Context(), Job{ID: "a"}), c.PutJob(t.Context(), Job{ID: "b"}))
	var runs atomic.Int64
	var met sync.WaitGroup
	met.Add(2)
	var wg sync.WaitGroup
	for _, ids := range [][2]string{{"a", "b"}, {"b", "a"}} {
		wg.Go(func() {
			once := sync.OnceFunc(func() { met.Done(); met.Wait() })
			err := c.tx(t.Context(), "cross", func(ctx context.Context, q conn) error {
				runs.Add(1)
				for i, id := range ids {
					if i == 1 {
						once()
					}
					if _, err := q.exec(ctx, `UPDATE jobs SET error = error || 'x' WHERE id = ?`, id); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() < 3 {
		t.Errorf("%d runs", runs.Load())
	}
	if j, err := c.Job(t.Context(), "a"); err != nil || j.Error != "xx" {
		t.Errorf("%+v, %v", j, err)
	}
	// One that never ends well is given up.
	n := 0
	err := c.do(t.Context(), "hopeless", func(context.Context) error { n++; return &pgconn.PgError{Code: "40001"} })
	if n != attempts || !errors.Is(err, ErrUnavailable) {
		t.Errorf("%d attempts, %v", n, err)
	}
}

// What the server refuses is told in its own way.
func TestExplain(t *testing.T) {
	for code, want := range map[string]error{"53100": syscall.ENOSPC, "57P01": ErrUnavailable, "57014": ErrUnavailable, "53300": ErrUnavailable, "08006": ErrUnavailable, "25006": ErrUnavailable} {
		if err := explainPostgres("db", &pgconn.PgError{Code: code}); !errors.Is(err, want) {
			t.Errorf("%s: %v", code, err)
		}
	}
	for _, code := range []string{"", "2", "28P01", "3D000", "42P07", "42501", "54000", "23505"} {
		if err := explainPostgres("db", &pgconn.PgError{Code: code}); errors.Is(err, ErrUnavailable) || errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// A connection notices that nobody is at the other end any more, in less than the time after
// which others take the host to be down.
func TestNoticesSilence(t *testing.T) {
	if pgSilence*2 > DownAfter {
		t.Errorf("%v is too long", pgSilence)
	}
	c := openTest(t, postgresTest(t))
	conn, err := c.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Raw(func(driverConn any) error {
		driven, ok := driverConn.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("%T", driverConn)
		}
		tcp, ok := driven.Conn().PgConn().Conn().(*net.TCPConn)
		if !ok {
			return fmt.Errorf("%T", driven.Conn().PgConn().Conn())
		}
		raw, rerr := tcp.SyscallConn()
		if rerr != nil {
			return rerr
		}
		var serr error
		rerr = raw.Control(func(fd uintptr) {
			for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 20_000, unix.TCP_KEEPIDLE: 5, unix.TCP_KEEPINTVL: 5, unix.TCP_KEEPCNT: 3} {
				if got, oerr := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); oerr != nil || got != want {
					serr = errors.Join(serr, oerr, fmt.Errorf("option %d of the connection is %d, want %d", option, got, want))
				}
			}
		})
		var idle string
		qerr := driven.Conn().QueryRow(t.Context(), `SHOW tcp_keepalives_idle`).Scan(&idle)
		if idle != "30" {
			qerr = errors.Join(qerr, fmt.Errorf("the server looks after %s s whether the host is there", idle))
		}
		return errors.Join(rerr, serr, qerr)
	})
	if err != nil {
		t.Error(err)
	}
}
