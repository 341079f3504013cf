package repository

import (
	"context"
	"errors"
	"log/slog"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// rebuildBatch is how many entries are gathered before they go to the table.
const rebuildBatch = 16 << 10

// errFull ends a rebuild that has filled the index.
var errFull = errors.New("index is full")

// rebuild fills an index that is empty – new, damaged, or dropped because it
// missed a prune – from the manifests of the project's live backups. It runs in
// a full backup only, which has most to gain, and behind W2, so that what it
// reads is protected by the session like any other source. An error only means
// that the index knows less.
func (s *Session) rebuild(ctx context.Context) {
	if s.merge == nil || s.parent != nil || !s.r.index.isEmpty() {
		return
	}
	all, err := s.r.standings(ctx)
	if err != nil {
		return
	}
	newest := make(map[string]standing)
	for _, st := range all { // oldest first
		if rec := st.root.rec; st.state == Available && rec.Project == s.o.Project && rec.Pin == nil {
			newest[rec.VolumeID] = st
		}
	}
	budget := s.r.index.capacity() / 2
	for _, st := range newest {
		if _, ok := s.avoid.backups[st.root.rec.Session]; ok {
			continue
		}
		if err := s.indexBackup(ctx, st, &budget); err != nil {
			if !errors.Is(err, errFull) {
				s.r.warn(ctx, "dedup index rebuilt in part", slog.String("backup", st.root.rec.BackupID), slog.Any("error", err))
			}
			return
		}
	}
}

// indexBackup adds the chunks of one backup.
func (s *Session) indexBackup(ctx context.Context, st standing, budget *int64) error {
	names, err := s.r.union(ctx, st.root.name)
	if err != nil {
		return err
	}
	rt, err := s.r.readRoot(ctx, names[st.root.name], st.root.name)
	if err != nil {
		return err
	}
	tree, err := manifest.Open(rt.geometry(), rt.top, s.r.loader(s.domain))
	if err != nil {
		return err //nolint:wrapcheck // only logged
	}
	var batch []chunk.Ref
	flush := func() error {
		more, failed := s.r.index.insert(s.merge.epoch, batch)
		batch = batch[:0]
		if failed == nil && !more {
			failed = errFull // lists were applied meanwhile: what was read is too old
		}
		return failed
	}
	err = tree.Walk(ctx, func(_ int64, l *manifest.Leaf) error {
		for i := range manifest.LeafBlocks {
			ref, ok := l.At(i)
			if !ok || s.avoids(ref.Pack) {
				continue
			}
			if *budget--; *budget < 0 {
				return errFull
			}
			batch = append(batch, ref)
		}
		if len(batch) < rebuildBatch {
			return nil
		}
		return flush()
	})
	if len(batch) > 0 && (err == nil || errors.Is(err, errFull)) {
		err = errors.Join(err, flush())
	}
	return err //nolint:wrapcheck // only logged
}

// isEmpty reports whether the index has nothing in it that was not put there
// since it was opened.
func (x *index) isEmpty() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.empty
}

// capacity is how many entries the table has room for.
func (x *index) capacity() int64 { return x.table.pages * pageEntries }
