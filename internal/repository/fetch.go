package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/pack"
)

// fetcher reads shards of one pack. A store that failed lately is left out, as
// long as there are enough others: it answers for its shards only when desperate
// is set.
type fetcher struct {
	r         *Repository
	name      string
	holders   []*member
	desperate bool

	mu      sync.Mutex
	buffers []*[]byte // lent for this read
}

var _ pack.Fetcher = (*fetcher)(nil)

var errAside = errors.New("store failed lately and is left alone for a while")

// Fetch implements pack.Fetcher.
func (f *fetcher) Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error) {
	m := f.holders[shard]
	if err := m.ready(); err != nil {
		return nil, err
	}
	now := f.r.o.Now()
	if !f.desperate && m.health.aside(now) {
		return nil, fmt.Errorf("%s: %w", m.url(), errAside)
	}
	began := time.Now()
	b, err := f.get(ctx, m, off, n)
	switch {
	case err == nil:
		m.health.answered()
		f.r.pace.note(int64(len(b)), time.Since(began))
	case errors.Is(err, objstore.ErrNotExist):
		// A shard that is owed says nothing about its store.
	case errors.Is(err, objstore.ErrRange):
		m.health.lied(now, f.r.o.Timing.Aside)
	case ctx.Err() == nil:
		m.health.failed(f.r.o.Now(), f.r.o.Timing.Aside)
	}
	return b, err
}

// Patience implements pack.Fetcher.
func (f *fetcher) Patience(n int64) time.Duration { return f.r.pace.patience(n) }

// get reads from a store, and gives up on one that takes too long whether it
// minds its context or not.
func (f *fetcher) get(ctx context.Context, m *member, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, f.r.o.Timing.Read)
	defer cancel()
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	c := &call{}
	// A buffer that a store which hangs may still write to is never used again.
	buf := fetchBuffer(n)
	go func() {
		b, err := m.store.Get(ctx, f.name, off, n, (*buf)[:0])
		if !c.state.CompareAndSwap(0, callReturned) {
			m.behind.Add(-1)
		}
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		f.lend(buf, r.b)
		return r.b, r.err
	case <-ctx.Done():
	}
	giveUp := func() {
		m.behind.Add(1)
		if !c.state.CompareAndSwap(0, callGivenUp) {
			m.behind.Add(-1)
		}
	}
	if errors.Is(context.Cause(ctx), pack.ErrOvertaken) {
		// The read is over for everyone else. What the store still writes goes
		// into a buffer that nobody looks at and nobody uses again.
		time.AfterFunc(settle, giveUp)
		return nil, fmt.Errorf("%s: %s: %w", m.url(), f.name, pack.ErrOvertaken)
	}
	select {
	case r := <-done:
		f.lend(buf, r.b)
		return r.b, r.err
	case <-time.After(settle):
	}
	giveUp()
	return nil, fmt.Errorf("%s: %s: %w: no answer: %w", m.url(), f.name, objstore.ErrDown, ctx.Err())
}

// fetchBuffers are for ranges of shards.
var fetchBuffers sync.Pool // *[]byte

// fetchBuffer returns a buffer with room for n bytes, or for what a store makes
// of it when n is not known.
func fetchBuffer(n int64) *[]byte {
	if b, ok := fetchBuffers.Get().(*[]byte); ok && int64(cap(*b)) >= n {
		return b
	}
	b := make([]byte, 0, max(n, 512))
	return &b
}

// lend notes a buffer that is free again when the read is over.
func (f *fetcher) lend(buf *[]byte, got []byte) {
	if cap(got) > cap(*buf) {
		*buf = got
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buffers = append(f.buffers, buf)
}

// release gives the buffers back: nobody looks at them behind the read.
func (f *fetcher) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.buffers {
		fetchBuffers.Put(b)
	}
	f.buffers = nil
}

// readContainer fills p with the bytes at off of a pack's container, from
// whatever k shards are right.
func (r *Repository) readContainer(ctx context.Context, id chunk.PackID, p []byte, off int64) error {
	holders := r.holders(id)
	if holders == nil {
		// Its writer may have seen a newer membership.
		if err := r.catchUp(ctx); err != nil {
			return fmt.Errorf("pack %s: %w", id, err)
		}
		holders = r.holders(id)
	}
	if holders == nil {
		return fmt.Errorf("pack %s has placement epoch %d, which the repository does not know: %w", id, id.Epoch(), ErrDamaged)
	}
	f := &fetcher{r: r, name: packName(id), holders: holders}
	defer f.release()
	report, err := r.coder.ReadAt(ctx, f, id, p, off)
	r.blame(holders, report)
	if errors.Is(err, pack.ErrLost) {
		// The stores that were left alone are better than none.
		f.desperate = true
		report, err = r.coder.ReadAt(ctx, f, id, p, off)
		r.blame(holders, report)
	}
	if lost, ok := errors.AsType[*pack.LostError](err); ok {
		return fmt.Errorf("%w: %w", whyLost(lost, len(holders)), err)
	}
	if err != nil {
		return fmt.Errorf("read pack %s: %w", id, err)
	}
	return nil
}

// containerLength returns the length of a pack's container, as the first genuine
// shard says, also of stores that failed lately.
func (r *Repository) containerLength(ctx context.Context, id chunk.PackID) (int64, error) {
	holders := r.holders(id)
	if holders == nil {
		return 0, fmt.Errorf("pack %s: %w", id, ErrDamaged)
	}
	f := &fetcher{r: r, name: packName(id), holders: holders, desperate: true}
	defer f.release()
	length, _, err := r.coder.Stat(ctx, f, id)
	return length, err //nolint:wrapcheck // it names the pack
}

// isWrong reports whether a shard is gone, or has wrong bytes: that its store did not
// answer is no such thing.
func isWrong(err error) bool {
	return slices.ContainsFunc([]error{objstore.ErrNotExist, objstore.ErrRange, pack.ErrCorrupt, pack.ErrVersion}, func(certain error) bool {
		return errors.Is(err, certain)
	})
}

// whyLost tells shards that are gone from those that cannot be asked for now:
// ErrTooFewStores if enough would be left with the stores that do not answer.
func whyLost(lost *pack.LostError, total int) error {
	gone := 0
	for _, b := range lost.Bad {
		if isWrong(b.Err) {
			gone++
		}
	}
	if total-gone >= lost.Need {
		return ErrTooFewStores
	}
	return ErrDamaged
}

// blame notes which stores returned wrong bytes, and which were not waited for.
func (r *Repository) blame(holders []*member, report pack.Report) {
	for _, shard := range report.Late {
		r.pace.spend()
		if shard < len(holders) {
			holders[shard].health.overtaken(r.o.Now(), r.o.Timing.Aside)
		}
	}
	for _, b := range report.Bad {
		if b.Shard < len(holders) && errors.Is(b.Err, pack.ErrCorrupt) {
			holders[b.Shard].health.lied(r.o.Now(), r.o.Timing.Aside)
		}
	}
}

// openChunk returns the plaintext of a chunk whose sealed bytes are given.
func openChunk(d *chunk.Domain, k chunk.Kind, ref chunk.Ref, sealed []byte) ([]byte, error) {
	s, err := d.Sealer(ref.Pack)
	if err != nil {
		return nil, fmt.Errorf("open a %s chunk: %w", k, err)
	}
	out, err := s.Open(nil, ref.Offset, k, ref.ID, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: pack %s: %w", ErrDamaged, ref.Pack, err)
	}
	return out, nil
}

// readChunk returns a chunk's plaintext, wherever its pack went.
func (r *Repository) readChunk(ctx context.Context, d *chunk.Domain, k chunk.Kind, ref chunk.Ref) ([]byte, error) {
	if err := checkLocation(ref.Location); err != nil {
		return nil, err
	}
	var out []byte
	read := func(ref chunk.Ref) (err error) {
		out, err = r.readChunkHere(ctx, d, k, ref)
		return err
	}
	err := r.follow(ctx, ref.Pack, func() error { return read(ref) }, func(f *forwarding) error {
		to, err := f.find(k, ref.ID)
		if err != nil {
			return err
		}
		return read(chunk.Ref{ID: ref.ID, Location: to})
	})
	return out, err
}

// readChunkHere reads a chunk from the very pack that the reference names.
func (r *Repository) readChunkHere(ctx context.Context, d *chunk.Domain, k chunk.Kind, ref chunk.Ref) ([]byte, error) {
	sealed := make([]byte, ref.Length)
	if err := r.readContainer(ctx, ref.Pack, sealed, int64(ref.Offset)); err != nil {
		return nil, err
	}
	return openChunk(d, k, ref, sealed)
}

func checkLocation(at chunk.Location) error {
	if at.Length < chunk.MinSealed || at.Length > chunk.MaxSealed || int64(at.Offset)+int64(at.Length) > pack.MaxContainer {
		return fmt.Errorf("chunk of %d bytes at %d of pack %s: %w", at.Length, at.Offset, at.Pack, ErrDamaged)
	}
	return nil
}

// nodeKey names a manifest node in the cache. The ID is keyed by project.
type nodeKey struct {
	id chunk.ID
	at chunk.Location
}

// nodeLoader loads manifest nodes of one project.
type nodeLoader struct {
	r *Repository
	d *chunk.Domain
}

var _ manifest.Loader = (*nodeLoader)(nil)

func (r *Repository) loader(d *chunk.Domain) *nodeLoader { return &nodeLoader{r, d} }

// LoadNode implements manifest.Loader.
func (l *nodeLoader) LoadNode(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	key := nodeKey{ref.ID, ref.Location}
	if plain, ok := l.r.nodes.get(key); ok {
		return plain, nil
	}
	plain, err := l.r.readChunk(ctx, l.d, chunk.Node, ref)
	if err != nil {
		return nil, err
	}
	const overhead = 160
	l.r.nodes.put(key, plain, int64(len(plain))+overhead)
	return plain, nil
}
