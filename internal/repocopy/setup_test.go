package repocopy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

const (
	block = 64 << 10
	leaf  = 128 * block
)

// site is a repository in memory whose stores can be made to misbehave.
type site struct {
	data, parity int
	mem          []*memstore.Store
	faulty       []*memstore.Faulty
}

var password = []byte("correct horse")

// eager never waits for stores that are not needed.
var eager = repository.Timing{Call: 5 * time.Second, Grace: 2 * time.Second, Read: time.Second, Aside: time.Nanosecond}

func newSite(tb failer, name string, data, parity int) *site {
	tb.Helper()
	s := &site{data: data, parity: parity}
	for i := range data + parity {
		s.add(memstore.New(name + strconv.Itoa(i)))
	}
	_, err := repository.Init(context.Background(), repository.InitOptions{
		Stores: s.stores(), Data: data, Parity: parity, Password: password, KDF: &repository.KDF{Time: 1, MemoryKiB: 8, Threads: 1},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *site) add(m *memstore.Store) {
	s.mem = append(s.mem, m)
	s.faulty = append(s.faulty, memstore.WithFaults(m, memstore.Faults{}))
}

func (s *site) clone() *site {
	out := &site{data: s.data, parity: s.parity}
	for _, m := range s.mem {
		out.add(m.Clone())
	}
	return out
}

// process is another process's way to the same stores.
func (s *site) process() *site {
	out := &site{data: s.data, parity: s.parity}
	for _, m := range s.mem {
		out.add(m)
	}
	return out
}

func (s *site) stores() []objstore.Store {
	out := make([]objstore.Store, len(s.faulty))
	for i, f := range s.faulty {
		out[i] = f
	}
	return out
}

func (s *site) faults(f memstore.Faults) {
	for _, st := range s.faulty {
		st.SetFaults(f)
	}
}

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func (s *site) open(tb failer, change ...func(*repository.Options)) *repository.Repository {
	tb.Helper()
	o := repository.Options{Stores: s.stores(), Password: password, Timing: eager, Agent: "test"}
	for _, f := range change {
		f(&o)
	}
	r, err := repository.Open(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// opened is open for a test that closes it at its end.
func (s *site) opened(t *testing.T, change ...func(*repository.Options)) *repository.Repository {
	t.Helper()
	r := s.open(t, change...)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// disk is a volume: blocks that are not there are holes.
type disk struct {
	size   int64
	blocks map[int64][]byte
}

func (d *disk) clone() *disk { return &disk{d.size, maps.Clone(d.blocks)} } // blocks are never changed in place

// write fills a block with something that the seed tells.
func (d *disk) write(b int64, seed uint32) {
	p := make([]byte, block)
	x := seed*2654435761 + 12345
	for i := range p {
		if i%8 == 0 || seed%3 > 0 {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
		}
		p[i] = byte(x) | 1
	}
	d.blocks[b] = p
}

// at returns a block's bytes as the volume has them.
func (d *disk) at(b int64) []byte {
	n := min(block, d.size-b*block)
	if n <= 0 {
		return nil
	}
	if p, ok := d.blocks[b]; ok {
		return p[:n]
	}
	return make([]byte, n)
}

func (d *disk) resize(size int64) {
	d.size = size
	for b := range d.blocks {
		if b*block >= size {
			delete(d.blocks, b)
		}
	}
	// What a shrunk block had behind the end is gone when the volume grows again.
	if last := (size - 1) / block; d.blocks[last] != nil && size%block != 0 {
		p := slices.Clone(d.blocks[last])
		clear(p[size%block:])
		d.blocks[last] = p
	}
}

func (d *disk) ReadAt(_ context.Context, p []byte, off int64) error {
	for n := 0; n < len(p); {
		at := off + int64(n)
		n += copy(p[n:], d.at(at / block)[at%block:])
	}
	return nil
}

// differ returns the bytes of the blocks of d that are not zeros and not as in
// old, and of those that a change of size touches.
func (d *disk) differ(old *disk) (n int64) {
	for b := range (d.size + block - 1) / block {
		now := d.at(b)
		zero := len(bytes.Trim(now, "\x00")) == 0
		if !zero && !bytes.Equal(now, old.at(b)) {
			n += int64(len(now))
		}
	}
	return n
}

type volume struct{ id, name, project string }

var web = volume{"vol-1", "web", "p"}

// backUp makes a backup. parent may be empty.
func backUp(ctx context.Context, r *repository.Repository, v volume, id, parent string, created time.Time, d *disk, retain time.Duration) error {
	s, err := r.Begin(ctx, repository.SessionOptions{Project: v.project, VolumeID: v.id, Volume: v.name, ParentBackup: parent, Retain: retain})
	if err != nil {
		return err
	}
	g := blockmap.Geometry{Size: d.size, BlockSize: block}
	res, err := backup.Run(ctx, d, session{s}, backup.Plan{Geometry: g, Workers: 2}, nil)
	if err != nil {
		return errors.Join(err, s.Abort(ctx))
	}
	_, err = s.Commit(ctx, repository.Root{
		BackupID: id, Name: "name of " + id, Description: "about " + id, Created: created, Geometry: g, Top: res.Top,
		Attributes: json.RawMessage(`{"of":"` + id + `"}`),
		Stats:      repository.Stats{Read: res.BytesRead},
	})
	return err
}

func mustBackUp(tb failer, r *repository.Repository, id, parent string, d *disk) {
	tb.Helper()
	// By the ID's last letter, in a minute each.
	created := time.Date(2026, 5, 1, 0, int(id[len(id)-1]), 0, 0, time.UTC)
	if err := backUp(context.Background(), r, web, id, parent, created, d, 0); err != nil {
		tb.Fatalf("backup %s: %v", id, err)
	}
}

// holds compares a backup with the disk that it has to be.
func holds(ctx context.Context, r *repository.Repository, id string, d *disk) (err error) {
	img, err := r.Image(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if img.Size() != d.size {
		return fmt.Errorf("backup %s has %d bytes, not %d", id, img.Size(), d.size)
	}
	got, want := make([]byte, block), make([]byte, block)
	for off := int64(0); off < d.size; off += block {
		n := min(block, d.size-off)
		if err := errors.Join(img.ReadAt(ctx, got[:n], off), d.ReadAt(ctx, want[:n], off)); err != nil {
			return err
		}
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("backup %s differs at byte %d", id, off)
		}
	}
	return nil
}

// sound checks the whole repository, its data as well.
func sound(ctx context.Context, r *repository.Repository) error {
	rep, err := r.Check(ctx, repository.CheckOptions{ReadData: true})
	if err == nil && !rep.OK() {
		err = fmt.Errorf("check found damage: %+v", rep)
	}
	return err
}

func listed(tb failer, r *repository.Repository) map[string]repository.Backup {
	tb.Helper()
	l, err := r.Backups(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	out := make(map[string]repository.Backup)
	for _, b := range l {
		out[b.ID] = b
	}
	return out
}

func all(tb failer, r *repository.Repository) []repository.Backup {
	return slices.Collect(maps.Values(listed(tb, r)))
}

func states(rs []Result) map[string]State {
	out := make(map[string]State)
	for _, r := range rs {
		out[r.Backup.ID] = r.State
	}
	return out
}
