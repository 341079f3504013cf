package repocopy

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/repository"
)

// one is the copy of one backup.
type one struct {
	*copier
	b   repository.Backup
	res *Result
}

// copy copies it, or says what that would read. Nothing of it is listed when it
// fails, unless the error is that the outcome is unknown. errGone: there is nothing
// to copy any more.
func (r *one) copy(ctx context.Context) error {
	if r.o.DryRun {
		return r.open(ctx, func(img *repository.Image) error {
			_, err := r.plan(ctx, img, r.base(r.b))
			return err
		})
	}
	base := r.base(r.b)
	sess, err := r.dst.Begin(ctx, repository.SessionOptions{
		Project: r.b.Project, VolumeID: r.b.VolumeID, Volume: r.b.Volume, ParentBackup: base, RetainUntil: r.b.RetainUntil,
	})
	if err != nil {
		return unwritable(err)
	}
	if sess.Parent() == nil {
		base = "" // it went meanwhile
	}
	unpin, err := r.pin(ctx, sess.ID())
	if err == nil {
		err = r.open(ctx, func(img *repository.Image) error { return r.session(ctx, img, sess, base) })
		r.warn(unpin())
	}
	return errors.Join(err, sess.Abort(ctx)) // of one that has ended: nothing
}

// open opens the backup in the source.
func (r *one) open(ctx context.Context, use func(*repository.Image) error) (err error) {
	img, err := r.src.Image(ctx, r.b.ID)
	if errors.Is(err, repository.ErrNotFound) {
		return errGone
	}
	if err != nil {
		return r.tooFew(ctx, fmt.Errorf("open the backup in the source: %w", err))
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	return use(img)
}

// warn adds to what is not as it should be.
func (r *one) warn(text string) {
	switch {
	case text == "":
	case r.res.Warning == "":
		r.res.Warning = text
	default:
		r.res.Warning += "; " + text
	}
}

// plan says what is to be read, given the base. A base whose manifest cannot be
// read in the source saves no reading; the backup itself may be whole all the same.
func (r *one) plan(ctx context.Context, img *repository.Image, base string) (backup.Plan, error) {
	if base != "" {
		p, n, err := r.compare(ctx, img, base)
		if err == nil {
			r.res.Base, r.res.Read, r.res.Skipped = base, n, img.Size()-n
			return p, nil
		}
		if ctx.Err() != nil {
			return p, err
		}
		r.warn(fmt.Sprintf("everything was read, as what differs from backup %s cannot be told: %v", base, err))
	}
	p, n, err := fullPlan(ctx, img.Tree())
	r.res.Read, r.res.Skipped = n, img.Size()-n
	return p, err
}

func (r *one) compare(ctx context.Context, img *repository.Image, base string) (p backup.Plan, bytes int64, err error) {
	old, err := r.src.Image(ctx, base)
	if err != nil {
		return p, 0, err //nolint:wrapcheck // only told
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	return diffPlan(ctx, img.Tree(), old.Tree())
}

// session fills the copy's session in the destination and commits it.
func (r *one) session(ctx context.Context, img *repository.Image, sess *repository.Session, base string) error {
	top, err := r.read(ctx, img, sess, base)
	if err != nil {
		return err
	}
	outcome, err := sess.Commit(ctx, repository.Root{
		BackupID: r.b.ID, Name: r.b.Name, Description: r.b.Description, Created: r.b.Created, Parent: &r.b.Parent,
		Attributes: r.b.Attributes, Geometry: img.Geometry(), Top: top.Top,
		Stats: repository.Stats{
			Read: r.res.Read, Changed: top.BytesChanged, New: r.res.New, Stored: r.res.Stored, Hole: top.BytesHole,
		},
	})
	st := sess.Stored()
	r.res.Shards = st.BytesShards
	if outcome == repository.OutcomeCommitted {
		for store, n := range st.Owed {
			r.warn(fmt.Sprintf("%d shards are owed to %s: \"cairn repo repair\" brings them there", n, store))
		}
		return nil
	}
	return written(fmt.Errorf("commit the copy (outcome %s): %w", outcome, err))
}

// read reads what is new into the session.
func (r *one) read(ctx context.Context, img *repository.Image, sess *repository.Session, base string) (backup.Result, error) {
	p, err := r.plan(ctx, img, base)
	if err != nil {
		return backup.Result{}, r.unread(ctx, err)
	}
	p.Workers, p.Bad = r.o.Workers, sess.Bad() // what the destination has lost is read anew
	var progress func(backup.Progress)
	if r.o.Progress != nil {
		progress = func(g backup.Progress) { r.o.Progress(Progress{Backup: r.b, Done: g.Done, Total: g.Total}) }
	}
	res, err := backup.Run(ctx, source{img}, session{sess}, p, progress)
	if err != nil {
		if re, ok := errors.AsType[*ReadError](err); ok {
			return res, r.unread(ctx, re) // its sentence says it all
		}
		return res, written(fmt.Errorf("copy the data: %w", err))
	}
	r.res.Read, r.res.New, r.res.Stored = res.BytesRead, res.BytesNew, sess.Stored().BytesStored
	r.res.Skipped = img.Size() - res.BytesRead
	return res, nil
}
