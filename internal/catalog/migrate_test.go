package catalog

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
)

// A step that was released is, in SQLite, what it was then.
func TestReleased(t *testing.T) {
	for i, want := range []string{
		"474f0a45a52ff65a92a9e4c3212a836fb4113904eab4042218b18b51c09ddaa5",
		"b763474bf39c6a5eb817365fb85eaedbe07505e37fa737c665dc8ef6c5db74e0",
		"8c637f1dc4ce0dc26ef44ce31f021731024375caa6eae8705007a4ffcf79c506",
		"adbcdfbf7950f5e5c771b7d35eeb4deba558fd30cdb535261654e56fe16942ba",
		"0f778cbd392bd722ec84704912edba535987fcb8b3aa684175c44964a686b1c3",
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256([]byte(sqliteDialect.schema(migrations[i])))); got != want {
			t.Errorf("the step from version %d was changed: %s", i, got)
		}
	}
}

func TestNewer(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			where := place(t)
			c := openTest(t, where)
			if err := c.d.setVersion(t.Context(), conn{c.db, c.d}, len(migrations)+1); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), where); !errors.Is(err, ErrNewer) {
				t.Errorf("a newer catalog: %v", err)
			}
			if err := c.d.setVersion(t.Context(), conn{c.db, c.d}, -1); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), where); err == nil || !strings.Contains(err.Error(), "not one of Cairn's") {
				t.Errorf("a strange version: %v", err)
			}
		})
	}
}

// A catalog of the first version keeps its records and gets what was added.
func TestUpgrade(t *testing.T) {
	for name, where := range databases {
		t.Run(name, func(t *testing.T) {
			ctx, at := t.Context(), where(t)
			old, err := open(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			run := func(query string) error {
				_, err := old.db.ExecContext(ctx, query)
				return err
			}
			must(
				t, run(old.d.schema(migrations[0])), old.d.setVersion(ctx, conn{old.db, old.d}, 1),
				run(`INSERT INTO jobs (id, kind, state, volume_id, volume, backup_id, target, owner, error, progress, result, created, started, finished)
					VALUES ('j', 'backup', 'running', 'v', 'volume', 'b', '', 'o', 'e', '{}', '', 1, 2, 3)`),
				run(`INSERT INTO settings (key, value) VALUES ('k', 'x')`), run(`INSERT INTO exports (name, backup_id, overlay, purpose, created)
					VALUES ('x', 'b', `+map[string]string{"sqlite": "1", "postgres": "TRUE"}[name]+`, 'p', 5)`),
				run(`INSERT INTO checkpoints (name, volume_id, backup_id) VALUES ('c', 'v', 'b')`), run(`INSERT INTO unfinished_volumes (volume_id, job_id) VALUES ('v', 'j')`),
				old.Close(),
			)
			c := openTest(t, at)
			if l, jerr := c.UnfinishedJobs(ctx); jerr != nil || len(l) != 1 || l[0].Error != "e" || l[0].Code != "" || l[0].Finished.IsZero() || l[0].Host != "" {
				t.Errorf("%+v, %v", l, jerr)
			}
			if v, serr := c.SharedSetting(ctx, "k", "y"); serr != nil || v != "x" {
				t.Errorf("setting %q, %v", v, serr)
			}
			if l, xerr := c.Exports(ctx); xerr != nil || !reflect.DeepEqual(l, []Export{{"x", "b", true, "p", moment(5)}}) {
				t.Errorf("exports %+v, %v", l, xerr)
			}
			if l, perr := c.Checkpoints(ctx); perr != nil || !reflect.DeepEqual(l, []Checkpoint{{Name: "c", VolumeID: "v", Backup: "b"}}) {
				t.Errorf("checkpoints %+v, %v", l, perr)
			}
			if l, uerr := c.Unfinished(ctx); uerr != nil || !reflect.DeepEqual(l, map[string]string{"v": "j"}) {
				t.Errorf("unfinished %v, %v", l, uerr)
			}
		})
	}
}

// Agents that start at once on an empty database make one schema.
func TestMigrateAtOnce(t *testing.T) {
	where := pgtest.Database(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			c, err := Open(t.Context(), where)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(c.PutJob(t.Context(), Job{ID: strconv.Itoa(i)}), c.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l, err := openTest(t, where).Jobs(t.Context(), 10); err != nil || len(l) != 6 {
		t.Errorf("%d jobs, %v", len(l), err)
	}
}

// A database that is something else's is told as one, and not touched.
func TestForeign(t *testing.T) {
	where := pgtest.Database(t)
	c, err := open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err = c.db.ExecContext(t.Context(), `CREATE TABLE jobs (salary BIGINT)`); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(t.Context(), where); err == nil || !strings.Contains(err.Error(), "tables of something else") {
		t.Error(err)
	}
	var n int
	if err = c.db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d tables, %v", n, err)
	}
}

// Both databases have the same tables and columns, and the page names each of them.
func TestSchemaPage(t *testing.T) {
	page, err := os.ReadFile("SCHEMA.md")
	if err != nil {
		t.Fatal(err)
	}
	column := func(r *sql.Rows) (s string, err error) { return s, r.Scan(&s) }
	columns := map[string][]string{}
	for name, query := range map[string]string{
		"sqlite": `SELECT m.name || '.' || p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table' ORDER BY 1`,
		"postgres": `SELECT table_name || '.' || column_name COLLATE "C" FROM information_schema.columns
			WHERE table_schema = 'public' AND table_name <> 'schema_version' ORDER BY 1`,
	} {
		c := openTest(t, databases[name](t))
		if columns[name], err = list(t.Context(), c, "list columns", column, query); err != nil {
			t.Fatal(err)
		}
	}
	if len(columns["sqlite"]) < 60 || !slices.Equal(columns["sqlite"], columns["postgres"]) {
		t.Errorf("sqlite: %v\npostgres: %v", columns["sqlite"], columns["postgres"])
	}
	for _, name := range columns["sqlite"] {
		table, col, _ := strings.Cut(name, ".")
		if !strings.Contains(string(page), "`"+table+"`") || !strings.Contains(string(page), "`"+col+"`") {
			t.Errorf("%s is not in SCHEMA.md", name)
		}
	}
	if last := fmt.Sprintf("| %d | ", len(migrations)); !strings.Contains(string(page), last) {
		t.Errorf("version %d is not in SCHEMA.md", len(migrations))
	}
}
