package serve_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

type blocks map[int64]bool

func (b blocks) span(off, n int64) {
	for i := off / block; i <= (off+n-1)/block; i++ {
		b[i] = true
	}
}

// mark is what a checkpoint's bitmap has to say.
type mark struct {
	must  blocks // were changed since
	may   blocks // were touched since, and need not have changed
	crash bool   // there was one since: more may be dirty
}

func newMark() *mark { return &mark{must: blocks{}, may: blocks{}} }

// bitmaps is a volume whose checkpoints come and go, and what they must say.
type bitmaps struct {
	*testing.T
	r       *rand.Rand
	v       *victim
	dir     string
	nbdinfo string
	c       *nbd.Client
	content []byte
	marks   map[string]*mark            // by checkpoint
	snaps   map[string]map[string]*mark // by snapshot: of the checkpoints that were there
	putOff  blocks                      // trimmed while there were snapshots: done when the last one goes
	backups []string                    // checkpoints of what would be Cairn's backups, oldest first
	named   int
}

// TestCheckpointsOfOthers: whatever comes and goes beside it, a checkpoint's bitmap, as
// libnbd's tool reads it, has every block that changed since; and no other, unless the
// data plane was killed since.
func TestCheckpointsOfOthers(t *testing.T) {
	seed, rounds := uint64(time.Now().UnixNano()), 50
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	if n, err := strconv.Atoi(os.Getenv("CAIRN_ROUNDS")); err == nil {
		rounds = n
	}
	t.Logf("CAIRN_SEED=%d", seed)
	dir := filepath.Dir(options(t).State)
	b := &bitmaps{
		T: t, r: rand.New(rand.NewPCG(seed, 0)), dir: dir, nbdinfo: needs.Tool(t, "nbdinfo", "libnbd-bin"), content: make([]byte, 4*mib),
		marks: map[string]*mark{}, snaps: map[string]map[string]*mark{}, putOff: blocks{}, v: startVictim(t, dir),
	}
	if _, err := b.v.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: int64(len(b.content))}); err != nil {
		t.Fatal(err)
	}
	b.connect()
	for range rounds {
		for range 1 + b.r.IntN(6) {
			b.change()
		}
		b.step()
		b.verify()
		if t.Failed() {
			break
		}
	}
	_ = b.c.Close()
	b.v.kill()
}

func (b *bitmaps) connect() {
	c, err := nbd.Dial(b.Context(), mustVolume(b.T, b.v).URI, nbd.ClientOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.c = c
}

func (b *bitmaps) fail(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v\n%s", err, &b.v.stderr)
	}
}

// change writes, zeroes or trims somewhere.
func (b *bitmaps) change() {
	off := int64(b.r.IntN(len(b.content)-1) &^ 511)
	n := min(512*int64(1+b.r.IntN(800)), int64(len(b.content))-off)
	was := bytes.Clone(b.content[off : off+n])
	var err error
	switch b.r.IntN(4) {
	case 0:
		clear(b.content[off : off+n])
		err = b.c.Zero(b.Context(), off, n, b.r.IntN(2) == 0)
	case 1:
		if err = b.c.Trim(b.Context(), off, n); err == nil {
			err = b.c.ReadAt(b.Context(), b.content[off:off+n], off) // what it reads as then is not fixed
		}
		if len(b.snaps) > 0 {
			b.putOff.span(off, n)
		}
	default:
		p := b.content[off : off+n]
		for i := range p {
			p[i] = byte(b.r.Uint32())
		}
		err = b.c.WriteAt(b.Context(), p, off, b.r.IntN(8) == 0)
	}
	b.fail(err)
	for _, m := range b.marks {
		m.may.span(off, n)
		for i := range n {
			if was[i] != b.content[off+i] {
				m.must[(off+i)/block] = true
			}
		}
	}
}

// step does one other thing.
func (b *bitmaps) step() {
	switch k := b.r.IntN(11); {
	case k < 2 && len(b.marks) < 6:
		name := b.name("t")
		got, err := b.v.CreateCheckpoint(b.Context(), "db", name)
		b.fail(err)
		if got.Name != name || got.Doubt != "" {
			b.Errorf("made %+v", got)
		}
		b.marks[name] = newMark()
	case k < 4 && len(b.snaps) < 2:
		b.pair()
	case k == 4:
		b.backup()
	case k < 7 && len(b.marks) > 0:
		names := slices.Sorted(maps.Keys(b.marks))
		name := names[b.r.IntN(len(names))]
		b.drop(name)
		b.backups = slices.DeleteFunc(b.backups, func(n string) bool { return n == name })
	case k == 7 && len(b.snaps) > 0:
		b.deleteSnapshot(slices.Sorted(maps.Keys(b.snaps))[0])
	case k == 8 && len(b.content) < 6*mib:
		b.extend()
	case k == 9:
		b.restart()
	case k == 10:
		b.kill()
	}
}

func (b *bitmaps) name(kind string) string {
	b.named++
	return fmt.Sprintf("%s%d", kind, b.named)
}

// pair makes a snapshot and a checkpoint of one instant.
func (b *bitmaps) pair() {
	snap, name := b.name("s"), b.name("t")
	_, err := b.v.CreateSnapshots(b.Context(), serve.CreateSnapshots{Volumes: []string{"db"}, Name: snap, Checkpoints: []string{name}, Force: true})
	b.fail(err)
	b.marks[name] = newMark()
	then := map[string]*mark{}
	for n, m := range b.marks {
		then[n] = &mark{must: maps.Clone(m.must), may: maps.Clone(m.may), crash: m.crash}
	}
	b.snaps[snap] = then
}

// backup does with the data plane what a backup of Cairn's does.
func (b *bitmaps) backup() {
	id := uuid.NewString()
	l, err := b.v.CreateSnapshots(b.Context(), serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{id}, Force: true})
	b.fail(err)
	b.marks[id] = newMark()
	b.backups = append(b.backups, id)
	b.fail(b.v.DeleteSnapshot(b.Context(), l[0].ID))
	for len(b.backups) > 2 {
		b.drop(b.backups[0])
		b.backups = b.backups[1:]
	}
}

func (b *bitmaps) drop(name string) {
	b.fail(b.v.DropCheckpoint(b.Context(), "db", name))
	delete(b.marks, name)
	for _, then := range b.snaps {
		delete(then, name)
	}
}

func (b *bitmaps) deleteSnapshot(name string) {
	b.fail(b.v.DeleteSnapshot(b.Context(), "db@"+name))
	delete(b.snaps, name)
	if len(b.snaps) > 0 {
		return
	}
	for _, m := range b.marks {
		maps.Copy(m.may, b.putOff)
	}
	b.putOff = blocks{}
	b.reread()
}

// reread takes over what became of the content without a write, and all that differs
// has to be dirty.
func (b *bitmaps) reread() {
	was := bytes.Clone(b.content)
	b.fail(b.c.ReadAt(b.Context(), b.content, 0))
	for i := range b.content {
		if was[i] != b.content[i] {
			for _, m := range b.marks {
				m.must[int64(i)/block] = true
			}
		}
	}
}

func (b *bitmaps) extend() {
	was := int64(len(b.content))
	b.content = append(b.content, make([]byte, block*(1+b.r.IntN(4)))...)
	_, err := b.v.ExtendVolume(b.Context(), "db", int64(len(b.content)))
	b.fail(err)
	for _, m := range b.marks {
		m.must.span(was, int64(len(b.content))-was)
		m.may.span(was, int64(len(b.content))-was)
	}
	b.fail(b.c.Close())
	b.connect()
}

func (b *bitmaps) restart() {
	b.fail(b.c.Close())
	b.fail(b.v.cmd.Process.Signal(syscall.SIGTERM))
	b.fail(b.v.cmd.Wait())
	b.v.Close()
	b.v = startVictim(b.T, b.dir)
	b.connect()
}

// kill is kill -9 while something is written.
func (b *bitmaps) kill() {
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		b.v.kill()
	}()
	var err error
	for err == nil {
		off := int64(b.r.IntN(len(b.content)/block) * block)
		err = b.c.WriteAt(b.Context(), bytes.Repeat([]byte{byte(b.r.Uint32())}, block), off, false)
	}
	<-dead
	_ = b.c.Close()
	b.v = startVictim(b.T, b.dir)
	b.connect()
	for _, m := range b.marks {
		m.crash = true
	}
	b.reread()
}

// verify compares all bitmaps with what they must say.
func (b *bitmaps) verify() {
	vol := mustVolume(b.T, b.v)
	var have []string
	for _, c := range vol.Checkpoints {
		have = append(have, c.Name)
		if c.Doubt != "" {
			b.Errorf("checkpoint %+v: neither a stop nor a kill is a reason for doubt", c)
		}
	}
	slices.Sort(have)
	if want := slices.Sorted(maps.Keys(b.marks)); !slices.Equal(have, want) {
		b.Fatalf("checkpoints %v, want %v", have, want)
	}
	for name, m := range b.marks {
		b.compare("the volume", nbd.URI(vol.Socket, "db@ro"), name, m)
	}
	ss, err := b.v.Snapshots(b.Context(), "db")
	b.fail(err)
	for _, s := range ss {
		for name, m := range b.snaps[s.Name] {
			b.compare("snapshot "+s.Name, s.URI, name, m)
		}
	}
}

func (b *bitmaps) compare(what, uri, name string, m *mark) {
	dirty := b.dirty(uri, name)
	for i := range m.must {
		if !dirty[i] {
			b.Errorf("%s: block %d changed since checkpoint %s and is called clean", what, i, name)
		}
	}
	for i := range dirty {
		if !m.crash && !m.may[i] {
			b.Errorf("%s: nobody touched block %d since checkpoint %s, which calls it dirty", what, i, name)
		}
	}
}

// dirty asks nbdinfo.
func (b *bitmaps) dirty(uri, name string) blocks {
	out := run(b.T, b.nbdinfo, "--json", "--map="+nbd.ContextDirtyBitmap+name, uri)
	var l []struct {
		Offset, Length int64
		Type           uint32
	}
	b.fail(json.Unmarshal([]byte(out), &l))
	got, end := blocks{}, int64(0)
	for _, e := range l {
		if e.Offset != end {
			b.Fatalf("a gap in the map of %s:\n%s", uri, out)
		}
		end = e.Offset + e.Length
		if e.Type == 1 {
			got.span(e.Offset, e.Length)
		}
	}
	return got
}

// TestRoomForBackups: neither others' checkpoints nor snapshots use up those that
// backups need.
func TestRoomForBackups(t *testing.T) {
	p := start(t, options(t))
	p.create(t, "db", mib)
	ctx := t.Context()
	full := func(add func(i int) error) (n int) {
		t.Helper()
		for ; n < 1000; n++ {
			if err := add(n); err != nil {
				if !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), "that is the limit") {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatal("there is no limit")
		return 0
	}
	others := full(func(i int) error {
		_, err := p.CreateCheckpoint(ctx, "db", fmt.Sprintf("t%d", i))
		return err
	})
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})[0]
	if full(func(int) error { return p.AliasCheckpoint(ctx, s.ID, "more") }) != 0 {
		t.Error("a snapshot's position took one more")
	}
	if full(func(int) error {
		_, err := p.CreateSnapshots(ctx, serve.CreateSnapshots{Volumes: []string{"db"}, Checkpoints: []string{"more"}})
		return err
	}) != 0 {
		t.Error("a snapshot came with one more")
	}
	snaps := 1 + full(func(i int) error {
		_, err := p.CreateSnapshots(ctx, serve.CreateSnapshots{Volumes: []string{"db"}, Name: fmt.Sprintf("s%d", i), Temporary: true})
		return err
	})
	if others != 64 || snaps != 256-32-64 {
		t.Errorf("%d others' checkpoints and %d snapshots fitted", others, snaps)
	}
	if kept := full(func(int) error { return p.AliasCheckpoint(ctx, s.ID, uuid.NewString()) }); kept != 32 {
		t.Errorf("%d were kept for backups", kept)
	}
	for _, c := range []struct {
		volume, name string
		want         error
	}{
		{"db", "t0", serve.ErrConflict}, {"db", "snapshot:" + s.ID, serve.ErrInvalid}, {"db", "", serve.ErrInvalid}, {"none", "x", serve.ErrNotFound},
	} {
		if _, err := p.CreateCheckpoint(ctx, c.volume, c.name); !errors.Is(err, c.want) {
			t.Errorf("%s %q: %v", c.volume, c.name, err)
		}
	}
}
