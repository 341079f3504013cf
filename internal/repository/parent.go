package repository

import (
	"context"
	"fmt"

	"github.com/cairnbackup/cairn/internal/manifest"
)

// findParent is W3: it reads the parent afresh, behind W2, and takes it only
// when it is live. Why it does not is told, not an error: the backup is then a
// full one.
func (s *Session) findParent(ctx context.Context) {
	if s.o.ParentBackup == "" {
		return
	}
	if err := s.useParent(ctx); err != nil {
		s.parent, s.parentTree = nil, nil
		s.parentProblem = err.Error()
	}
}

func (s *Session) useParent(ctx context.Context) error {
	st, err := s.r.find(ctx, s.o.ParentBackup)
	if err != nil {
		return err
	}
	id := s.o.ParentBackup
	switch rec := st.root.rec; {
	case rec.Pin != nil:
		return fmt.Errorf("%s is a pin and no backup", id)
	case st.state != Available:
		return fmt.Errorf("parent backup %s is %s", id, st.state)
	case rec.Project != s.o.Project:
		return fmt.Errorf("parent backup %s is of another project", id)
	case rec.VolumeID != s.o.VolumeID:
		return fmt.Errorf("parent backup %s is of another volume", id)
	}
	session := st.root.rec.Session
	// What was found may have been read before W2, or be remembered: the root
	// record, its marks and its votes are read again.
	names, err := s.r.union(ctx, st.root.name)
	if err != nil {
		return err
	}
	rt, err := s.r.readRoot(ctx, names[st.root.name], st.root.name)
	if err != nil {
		return err
	}
	deleted, err := s.r.isMarked(ctx, deletedName(session))
	if err != nil {
		return err
	}
	if deleted {
		return fmt.Errorf("parent backup %s was deleted", id)
	}
	tree, err := s.reuse(ctx, rt)
	if err == nil {
		tree, err = s.soundParent(ctx, rt, tree)
	}
	if err != nil {
		return fmt.Errorf("parent backup %s: %w", id, err)
	}
	s.parent, s.parentTree, s.parentID = rt, tree, id
	return nil
}

// reuse says whether all that a root record reaches may be used again: W3 and
// W4. The root record was read behind W2.
func (s *Session) reuse(ctx context.Context, rt *root) (*manifest.Tree, error) {
	purged, err := s.r.isMarked(ctx, purgedName(rt.rec.Session))
	if err != nil {
		return nil, err
	}
	if _, condemned := s.avoid.backups[rt.rec.Session]; condemned || purged {
		return nil, errRemoved
	}
	d, err := s.r.decide(ctx, rt.rec.Session, rt.rec.Voters, &rt.digest)
	if err != nil {
		return nil, err
	}
	if d == Aborted {
		return nil, fmt.Errorf("it was never made, as its session is aborted: %w", ErrNotFound)
	}
	if d != Committed {
		return nil, fmt.Errorf("it is %s", d)
	}
	tree, err := manifest.Open(rt.geometry(), rt.top, s.r.loader(s.domain))
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller names the backup
	}
	return tree, s.checkCondemned(ctx, tree)
}

// errRemoved is ErrNotFound for a backup of which objects are there still: P8 is
// near, or was.
var errRemoved = removedError{}

type removedError struct{}

// Error returns the sentence.
func (removedError) Error() string {
	return "a prune is removing it, and it cannot be brought back any more"
}

// Is makes it ErrNotFound, without the words.
func (removedError) Is(target error) bool { return target == ErrNotFound }

// errCondemned says that a backup hangs on packs that a prune removes or compacts.
var errCondemned = fmt.Errorf("some of its packs are on the list of a prune: try again when that has ended, and if it died, when the next one has: %w", ErrPruning)

// checkCondemned is W4 for the chunks that an incremental takes over unread:
// none may be in a condemned pack. Lists are rare and short-lived, so that the
// whole manifest is read only then.
func (s *Session) checkCondemned(ctx context.Context, tree *manifest.Tree) error {
	if len(s.avoid.packs) == 0 {
		return nil
	}
	packs, err := tree.Packs(ctx)
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	for p := range packs {
		if s.avoid.has(p) {
			return errCondemned
		}
	}
	return nil
}
