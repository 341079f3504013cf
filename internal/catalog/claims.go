package catalog

import (
	"context"
	"database/sql"
)

// OfferJob writes the record of a queued job that no agent has yet: the host that
// it names may claim it, or any if it names none.
func (c *Catalog) OfferJob(ctx context.Context, j Job) error {
	j.State = Queued
	return c.putJob(ctx, "offer job "+j.ID, j, j.Host, true)
}

// ClaimJob gives the oldest job that is offered to host, and is running from then
// on, by it. Each job is given once, whoever asks at the same time: false when there
// is none. Whether a claim was made whose error is [ErrUnavailable] is seen in
// [Catalog.UnfinishedJobs].
func (c *Catalog) ClaimJob(ctx context.Context, host string) (j Job, ok bool, err error) {
	err = c.tx(ctx, "claim a job for host "+host, func(ctx context.Context, q conn) error {
		ok = false
		return q.rows(ctx, func(r *sql.Rows) error {
			var serr error
			j, serr = scanJob(r)
			ok = true
			return serr
		}, `UPDATE jobs SET state = ?, offered = FALSE, host = ?, owner = ?, started = `+c.d.now+`
			WHERE id = (SELECT id FROM jobs WHERE offered AND (host = '' OR host = ?) ORDER BY created, id LIMIT 1`+c.d.skip+`)
			RETURNING `+jobColumns, Running, host, host, host)
	})
	if err != nil {
		return Job{}, false, err
	}
	return j, ok, nil
}

// WithdrawJob cancels a job that is offered, if nobody has claimed it:
// [ErrNotFound] otherwise.
func (c *Catalog) WithdrawJob(ctx context.Context, id, why string) error {
	return c.one(ctx, "withdraw job "+id, `UPDATE jobs SET state = ?, offered = FALSE, error = ?, finished = `+c.d.now+` WHERE id = ? AND offered`,
		Canceled, sentence(why), id)
}
