package catalog

import (
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// databases are where a test gets a place for an empty catalog.
var databases = map[string]func(*testing.T) string{"sqlite": sqliteTest, "postgres": postgresTest}

func sqliteTest(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "odd name ?#%.db")
}

func postgresTest(t *testing.T) string {
	t.Helper()
	return pgtest.Database(t)
}

// openTest opens a catalog for the test.
func openTest(t *testing.T, where string) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// agents opens a catalog as several agents do that share it. Of SQLite there is one.
func agents(t *testing.T, where string) []*Catalog {
	t.Helper()
	l := []*Catalog{openTest(t, where)}
	for isPostgres(where) && len(l) < 3 {
		l = append(l, openTest(t, where))
	}
	return l
}

func reopen(t *testing.T, c *Catalog, where string) *Catalog {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return openTest(t, where).For(c.host)
}

// must ends the test when one of them is an error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
