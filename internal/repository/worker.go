package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/pack"
)

// Worker puts blocks and nodes into packs. It is one goroutine's; a session
// may have several. It holds one pack's buffer of 16 MiB from the first new
// chunk until Close.
type Worker struct {
	s    *Session
	pack *pack.Builder
	buf  []byte // the pack's, as the pool gave it
	done bool
}

// Worker returns another worker, which has to be closed.
func (s *Session) Worker() (*Worker, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	return &Worker{s: s}, nil
}

// BlockID returns the ID that a block with this content has in this session's
// project.
func (w *Worker) BlockID(plain []byte) chunk.ID { return w.s.domain.ID(chunk.Data, plain) }

// PutBlock stores a block, or finds that the project has the same one already.
// id must be what BlockID returns for plain, which is 1 to 64 KiB and not kept.
// stored is the sealed length of a block that was stored now, and 0 of one that
// was there. An error ends the session: nothing but Close and Abort makes sense
// behind it.
func (w *Worker) PutBlock(ctx context.Context, id chunk.ID, plain []byte) (ref chunk.Ref, stored int, err error) {
	return w.put(ctx, chunk.Data, id, plain)
}

// PutNode stores a node of the manifest, as PutBlock does a block.
func (w *Worker) PutNode(ctx context.Context, plain []byte) (chunk.Ref, error) {
	ref, _, err := w.put(ctx, chunk.Node, w.s.domain.ID(chunk.Node, plain), plain)
	return ref, err
}

func (w *Worker) put(ctx context.Context, k chunk.Kind, id chunk.ID, plain []byte) (ref chunk.Ref, stored int, err error) {
	if w.done {
		return ref, 0, ErrEnded
	}
	if err = ctx.Err(); err != nil {
		return ref, 0, fmt.Errorf("store a %s chunk: %w", k, err)
	}
	if at, ok := w.s.known(id); ok {
		return chunk.Ref{ID: id, Location: at}, 0, nil
	}
	if ref, err = w.add(ctx, k, id, plain); err != nil {
		return chunk.Ref{}, 0, err
	}
	w.s.local.put(id, ref.Location)
	w.s.merge.add(ref)
	return ref, int(ref.Length), nil
}

// known returns where a chunk is that may be used again: W4.
func (s *Session) known(id chunk.ID) (chunk.Location, bool) {
	if at, ok := s.local.get(id); ok {
		return at, true // this session's own
	}
	if s.merge == nil {
		return chunk.Location{}, false
	}
	at, ok := s.merge.lookup(id)
	if !ok || s.avoids(at.Pack) {
		return chunk.Location{}, false
	}
	s.use(at.Pack)
	return at, true
}

// add seals a chunk into the worker's pack, and into the next one when this is
// full.
func (w *Worker) add(ctx context.Context, k chunk.Kind, id chunk.ID, plain []byte) (chunk.Ref, error) {
	for {
		if w.pack == nil {
			if err := w.start(); err != nil {
				return chunk.Ref{}, err
			}
		}
		ref, err := w.pack.Add(k, id, plain)
		if !errors.Is(err, pack.ErrFull) {
			if err != nil {
				err = fmt.Errorf("store a %s chunk: %w", k, err)
			}
			return ref, err
		}
		if err := w.send(ctx); err != nil {
			return chunk.Ref{}, err
		}
	}
}

func (w *Worker) start() error {
	if w.buf == nil {
		var err error
		if w.buf, err = w.s.r.packs.take(); err != nil {
			return err
		}
	}
	id, err := w.s.newPackID()
	if err != nil {
		return err
	}
	if w.pack, err = pack.NewBuilder(w.s.domain, id, w.buf); err != nil {
		return fmt.Errorf("begin a pack: %w", err)
	}
	return nil
}

// send finishes the worker's pack and hands it to the queues.
func (w *Worker) send(ctx context.Context) error {
	p := w.pack
	w.pack = nil
	container, err := p.Finish()
	if err != nil {
		err = fmt.Errorf("finish a pack: %w", err)
	} else {
		err = w.s.ship.ship(ctx, p.ID(), container)
	}
	if err != nil {
		w.s.lose(err)
	}
	return err
}

// Close sends what the worker has left. Its pack need not be on the stores when
// it returns: Commit waits for that. It must be called once, also behind an
// error.
func (w *Worker) Close(ctx context.Context) error {
	if w.done {
		return nil
	}
	w.done = true
	var err error
	if err = ctx.Err(); err != nil {
		err = fmt.Errorf("close a worker: %w", err) // given up: nothing more is sent
		if w.pack != nil && w.pack.Len() > 0 {
			w.s.lose(err)
		}
	} else if w.pack != nil && w.pack.Len() > 0 {
		err = w.send(ctx)
	}
	if w.buf != nil {
		err = errors.Join(err, w.s.r.packs.put(w.buf))
	}
	w.pack, w.buf = nil, nil
	w.s.leave()
	return err
}
