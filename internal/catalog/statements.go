package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// conn runs statements, on the database or in a transaction, in its dialect.
type conn struct {
	on interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	}
	d *dialect
}

// exec returns how many records a statement changed.
func (q conn) exec(ctx context.Context, query string, args ...any) (int64, error) {
	if err := checkTexts(args); err != nil {
		return 0, err
	}
	res, err := q.on.ExecContext(ctx, q.d.query(query), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// rows calls scan for each row of a query. The connection is busy meanwhile, so
// scan must not use the catalog.
func (q conn) rows(ctx context.Context, scan func(*sql.Rows) error, query string, args ...any) (err error) {
	if err = checkTexts(args); err != nil {
		return err
	}
	rows, err := q.on.QueryContext(ctx, q.d.query(query), args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err = scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// row reads the first row of a query: sql.ErrNoRows when there is none.
func (q conn) row(ctx context.Context, into []any, query string, args ...any) error {
	found := false
	err := q.rows(ctx, func(r *sql.Rows) error {
		if found {
			return nil
		}
		found = true
		return r.Scan(into...)
	}, query, args...)
	if err == nil && !found {
		err = sql.ErrNoRows
	}
	return err
}

const (
	attempts  = 8
	firstWait = 5 * time.Millisecond // before the second attempt; it doubles from there
)

// do runs f, again when the database undid what it did for the sake of others;
// op names it in errors.
func (c *Catalog) do(ctx context.Context, op string, f func(ctx context.Context) error) error {
	outer := ctx
	if c.d.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.d.timeout)
		defer cancel()
	}
	wait := firstWait
	for n := 1; ; n++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if outer.Err() != nil { // not the database's fault
			return fmt.Errorf("%s: %w", op, err)
		}
		if n == attempts || !c.d.again(err) {
			return c.explain(op, err)
		}
		t := time.NewTimer(wait/2 + rand.N(wait)) //nolint:gosec // no secret
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return c.explain(op, errors.Join(err, ctx.Err()))
		}
		wait *= 2
	}
}

// explain says what was to be done, what is wrong, and the way out.
func (c *Catalog) explain(op string, err error) error {
	return fmt.Errorf("%s: %w", op, c.d.explain(c.name, err))
}

// exec runs one statement.
func (c *Catalog) exec(ctx context.Context, op, query string, args ...any) error {
	return c.do(ctx, op, func(ctx context.Context) error {
		_, err := conn{c.db, c.d}.exec(ctx, query, args...)
		return err
	})
}

// one is exec for a statement that must change a record: [ErrNotFound] otherwise.
func (c *Catalog) one(ctx context.Context, op, query string, args ...any) error {
	return c.do(ctx, op, func(ctx context.Context) error {
		n, err := conn{c.db, c.d}.exec(ctx, query, args...)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
}

// tx runs f in a transaction, which is committed when f returns nil. f may be run
// again.
func (c *Catalog) tx(ctx context.Context, op string, f func(ctx context.Context, q conn) error) error {
	return c.do(ctx, op, func(ctx context.Context) error {
		tx, err := c.db.BeginTx(ctx, &sql.TxOptions{Isolation: c.d.level})
		if err != nil {
			return err
		}
		if err = f(ctx, conn{tx, c.d}); err != nil {
			_ = tx.Rollback() // the error that led here matters
			return err
		}
		return tx.Commit()
	})
}

// list returns what scan makes of each row of a query.
func list[T any](ctx context.Context, c *Catalog, op string, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	var l []T
	err := c.do(ctx, op, func(ctx context.Context) error {
		l = nil
		return conn{c.db, c.d}.rows(ctx, func(r *sql.Rows) error {
			x, err := scan(r)
			l = append(l, x)
			return err
		}, query, args...)
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}
