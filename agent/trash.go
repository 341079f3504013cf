package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
)

// trash lists what the repository has in the trash.
func (s *server) trash(ctx context.Context) (any, error) {
	l, err := s.repo.Trash(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Backup, 0, len(l))
	for _, x := range l {
		out = append(out, known(x))
	}
	return out, nil
}

// undelete takes a backup out of the trash and records it again. Its place in
// the change history of its volume was given up when it was deleted: the next
// incremental starts from another backup.
func (s *server) undelete(ctx context.Context, r request) (any, error) {
	unlock, err := s.removing.lock(ctx, "") // against its deletion, which is tried again now and then
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, err := s.repo.Undelete(ctx, r.ref)
	if errors.Is(err, repository.ErrInvalid) {
		return nil, refuse(CodeConflict, "backup %s is not deleted", r.ref)
	}
	if err != nil {
		return nil, err
	}
	b := known(x)
	if err := s.relist(context.WithoutCancel(ctx), &b); err != nil {
		return nil, fmt.Errorf("backup %s is out of the trash, and will be listed when the agent starts again: %w", b.ID, err)
	}
	return b, nil
}

// relist records a backup that came out of the trash. The record of its deletion may still
// be there, also with the wish that it be deleted: that goes first, or it would be again.
func (s *server) relist(ctx context.Context, b *Backup) error {
	b.Checkpoint = ""
	if old, err := s.cat.Backup(ctx, b.ID); err == nil && old.Status == catalog.Deleting {
		b.Checkpoint = old.Checkpoint
	}
	if err := s.cat.WantBackup(ctx, b.ID); err != nil {
		return err
	}
	return s.cat.PutBackup(ctx, *b)
}
