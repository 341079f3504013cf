package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Call is a request of one host's agent to another's: to do what only a volume's own
// host can. The database carries it, so that no agent has to reach another. It is
// offered, claimed and answered, or withdrawn; what nobody claimed in time is
// as if withdrawn.
type Call struct {
	ID      string
	Host    string // that is asked
	From    string // that asks
	Method  string
	Request json.RawMessage
	Answer  json.RawMessage // nil until it is answered
}

// keepCalls is for how long a call stays in the catalog at most.
const keepCalls = time.Hour

// OfferCall offers a call of this host for so long. It forgets calls of long ago.
func (c *Catalog) OfferCall(ctx context.Context, x Call, wait time.Duration) error {
	return c.tx(ctx, "call host "+x.Host, func(ctx context.Context, q conn) error {
		if _, err := q.exec(ctx, `DELETE FROM calls WHERE expires < `+c.d.now+` - ?`, int64(keepCalls)); err != nil {
			return err
		}
		if _, err := q.exec(ctx, `INSERT INTO calls (id, host, caller, method, request, state, answer, expires) VALUES (?, ?, ?, ?, ?, 'offered', '', `+c.d.now+` + ?)`,
			x.ID, x.Host, c.host, x.Method, string(x.Request), int64(wait)); err != nil {
			return err
		}
		return c.d.notify(ctx, q, x.Host)
	})
}

// ClaimCall returns the oldest call that is offered to this host, which is claimed from
// then on: no call is given twice. False: there is none.
func (c *Catalog) ClaimCall(ctx context.Context) (x Call, ok bool, err error) {
	err = c.tx(ctx, "claim a call", func(ctx context.Context, q conn) error {
		ok = false
		return q.rows(ctx, func(r *sql.Rows) error {
			var request string
			ok = true
			serr := r.Scan(&x.ID, &x.Host, &x.From, &x.Method, &request)
			x.Request = json.RawMessage(request)
			return serr
		}, `UPDATE calls SET state = 'claimed'
			WHERE id = (SELECT id FROM calls WHERE host = ? AND state = 'offered' AND expires > `+c.d.now+` ORDER BY expires, id LIMIT 1`+c.d.skip+`)
			RETURNING id, host, caller, method, request`, c.host)
	})
	if err != nil {
		return Call{}, false, err
	}
	return x, ok, nil
}

// AnswerCall answers a call that this host claimed.
func (c *Catalog) AnswerCall(ctx context.Context, x Call, answer json.RawMessage) error {
	return c.tx(ctx, "answer host "+x.From, func(ctx context.Context, q conn) error {
		if n, err := q.exec(ctx, `UPDATE calls SET state = 'answered', answer = ? WHERE id = ? AND state = 'claimed'`, string(answer), x.ID); err != nil || n == 0 {
			return errors.Join(err, ErrNotFound)
		}
		return c.d.notify(ctx, q, x.From)
	})
}

// TakeAnswer returns the answer to a call, and forgets it then; nil while there is none.
func (c *Catalog) TakeAnswer(ctx context.Context, id string) (json.RawMessage, error) {
	l, err := list(ctx, c, "read an answer", func(r *sql.Rows) (text string, err error) { return text, r.Scan(&text) },
		`DELETE FROM calls WHERE id = ? AND state = 'answered' RETURNING answer`, id)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return json.RawMessage(l[0]), nil
}

// WithdrawCall takes a call back. It is [ErrNotFound] when somebody has claimed it: it is
// done, or will be.
func (c *Catalog) WithdrawCall(ctx context.Context, id string) error {
	return c.one(ctx, "withdraw call "+id, `DELETE FROM calls WHERE id = ? AND state = 'offered'`, id)
}

// Listen calls heard whenever this host is called, or answered, until ctx ends or the
// connection is lost, which is the error. Of some databases nothing is heard at all, and
// of none is it sure: look now and then as well.
func (c *Catalog) Listen(ctx context.Context, heard func()) error {
	if c.d.listen == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := c.d.listen(ctx, c.db, c.host, heard); err != nil {
		return fmt.Errorf("listen for calls: %w", c.d.explain(c.name, err))
	}
	return nil
}
