package pgtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// common is the server of the test program's own databases. It is started for the
// first that wants one.
var common struct {
	sync.Mutex

	server *Server
	err    error
	n      atomic.Int64
}

// Main runs the tests of a package that uses [Database], and ends the server:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
func Main(m *testing.M) {
	m.Run()
	common.Lock()
	defer common.Unlock()
	if common.server != nil {
		_ = common.server.remove() // it ends with this process at the latest
	}
}

// Database makes an empty database, and returns its address, with the password. All
// of a test program are on one server, which is not safe from a crash and lives
// until [Main] ends. Where PostgreSQL is not installed the test is skipped; with
// CAIRN_CI=1 it fails.
//
// Texts sort by the rules of English there, as they well may where it is used.
func Database(tb testing.TB) string {
	tb.Helper()
	s, err := commonServer()
	if err != nil {
		missing(tb, err)
	}
	name := fmt.Sprint("test", common.n.Add(1))
	if err := s.exec(tb.Context(), `CREATE DATABASE `+name+` TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'`); err != nil {
		tb.Fatalf("make database %s: %v", name, err)
	}
	tb.Cleanup(func() {
		if err := s.exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			tb.Errorf("drop database %s: %v", name, err)
		}
	})
	return s.URL(name)
}

func commonServer() (*Server, error) {
	common.Lock()
	defer common.Unlock()
	if common.server == nil && common.err == nil {
		common.server, common.err = newServer(context.Background(), Server{ip: loopback}) // it outlives the test
	}
	return common.server, common.err
}
