package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// fake is a server of disks in memory that notes what is there.
type fake struct {
	size   int64
	away   bool
	broken error // why no snapshot can be made, half of which is left
	full   func() error
	there  []string // snapshots and checkpoints
	lost   map[string]string
	writer string
}

func (f *fake) gone() error {
	if f.away {
		return fmt.Errorf("%w: hello", ErrAway)
	}
	return nil
}

func (f *fake) look(context.Context, Record) (int64, error) { return f.size, f.gone() }
func (f *fake) state(_ context.Context, r Record) state {
	s := state{writer: f.writer, err: f.gone(), doubts: map[string]string{}}
	for _, c := range r.Checkpoints {
		s.doubts[c.Name] = c.Doubt
	}
	return s
}

func (f *fake) begin(_ context.Context, _ Record, b beginning) (taken, error) {
	if err := f.gone(); err != nil {
		return taken{}, err
	}
	f.there = append(f.there, b.snapshot, b.checkpoint)
	if f.broken != nil {
		return taken{}, f.broken
	}
	return taken{uri: "nbd://x/" + b.snapshot, size: f.size, at: time.Unix(1, 0).UTC(), lost: f.lost}, nil
}

func (f *fake) remove(names ...string) error {
	if err := f.gone(); err != nil {
		return err
	}
	f.there = slices.DeleteFunc(f.there, func(n string) bool { return slices.Contains(names, n) })
	return nil
}

func (f *fake) room(Record) error {
	if f.full == nil {
		return nil
	}
	return f.full()
}

func (f *fake) verify(context.Context, Record, string) error       { return f.gone() }
func (f *fake) end(_ context.Context, _ Record, id string) error   { return f.remove(id) }
func (f *fake) forget(_ context.Context, _ Record, n string) error { return f.remove(n) }
func (f *fake) sweep(_ context.Context, r Record) error {
	if err := f.gone(); err != nil {
		return err
	}
	f.there = slices.DeleteFunc(f.there, func(n string) bool {
		return !slices.ContainsFunc(r.Checkpoints, func(c Checkpoint) bool { return c.Name == n })
	})
	return nil
}

// slow is a server that is asked how a disk is while a test looks at the set.
type slow struct {
	*fake

	asked, answer chan struct{}
}

func (s slow) state(ctx context.Context, r Record) state {
	s.asked <- struct{}{}
	<-s.answer
	return s.fake.state(ctx, r)
}

// TestOthersDoNotWait: whoever asks for a volume does not wait for the server of another one
// that is just being made.
func TestOthersDoNotWait(t *testing.T) {
	f := &fake{size: 1 << 20}
	s := open(t, vfs.NewMem(), f)
	create(t, s, "first")
	d := slow{f, make(chan struct{}), make(chan struct{})}
	s.drivers[KindNBD] = d
	made := make(chan error, 1)
	go func() {
		_, err := s.Create(t.Context(), Record{Name: "second", Kind: KindNBD, URI: "nbd://host/second"})
		made <- err
	}()
	<-d.asked
	if !s.Has("first") || !s.Has("second") {
		t.Error("not there")
	}
	close(d.answer)
	if err := <-made; err != nil {
		t.Error(err)
	}
}

// TestSameIDAgain: what a volume has left where it was served goes with the next one of its
// ID, also when its record could not be read.
func TestSameIDAgain(t *testing.T) {
	ctx := t.Context()
	fsys, f := vfs.NewMem(), &fake{size: 1 << 20}
	s := open(t, fsys, f)
	v := create(t, s, "disk")
	if _, err := s.CreateSnapshots(ctx, temporary("disk", "first"), nil); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, filepath.Join("/state/sources", fileName(v.ID)), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, fsys, f)
	if err := s.Delete(ctx, v.ID); err != nil || len(f.there) != 2 {
		t.Fatalf("%v, there is %q", err, f.there)
	}
	if _, err := s.Create(ctx, Record{ID: v.ID, Name: "disk", Kind: KindNBD, URI: "nbd://host/disk"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(ctx); err != nil || len(f.there) != 0 {
		t.Errorf("%v, there is %q", err, f.there)
	}
}

func open(t *testing.T, fsys vfs.FS, f *fake) *Set {
	t.Helper()
	s, err := Open(fsys, "/state/sources")
	if err != nil {
		t.Fatal(err)
	}
	s.drivers[KindNBD] = f
	return s
}

func create(t *testing.T, s *Set, name string) serve.Volume {
	t.Helper()
	v, err := s.Create(t.Context(), Record{Name: name, Kind: KindNBD, URI: "nbd://host/" + name})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func temporary(volume, checkpoint string) serve.CreateSnapshots {
	return serve.CreateSnapshots{Volumes: []string{volume}, Name: "b1", Temporary: true, Checkpoints: []string{checkpoint}}
}

// TestRecordsOutliveTheProcess: volumes, their checkpoints and attributes are there after a
// power failure, and what was left of snapshots is swept.
func TestRecordsOutliveTheProcess(t *testing.T) {
	ctx := t.Context()
	fsys, f := vfs.NewMem(), &fake{size: 1 << 20}
	s := open(t, fsys, f)
	v := create(t, s, "disk")
	if _, err := s.CreateSnapshots(ctx, temporary("disk", "first"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetAttributes(ctx, v.ID, serve.SetAttributes{Attributes: json.RawMessage(`{"a": 1}`), Was: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	f.lost, f.size = map[string]string{"first": "it was restarted"}, 2<<20
	if _, err := s.CreateSnapshots(ctx, temporary("disk", "second"), nil); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	fsys = fsys.Crash(rand.New(rand.NewPCG(seed, 0)))
	s = open(t, fsys, f)
	got, err := s.Volume(ctx, "disk")
	want := []serve.Checkpoint{{Name: "first", Created: time.Unix(1, 0).UTC(), Doubt: "it was restarted"}, {Name: "second", Created: time.Unix(1, 0).UTC()}}
	if err != nil || got.ID != v.ID || got.Size != 2<<20 || string(got.Attributes) != `{"a":1}` || !slices.Equal(got.Checkpoints, want) || got.Snapshots != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if len(f.there) != 4 {
		t.Fatalf("there is %q", f.there)
	}
	f.away = true
	if err = s.Sweep(ctx); !errors.Is(err, ErrAway) {
		t.Errorf("swept what is away: %v", err)
	}
	f.away = false
	if err = s.Sweep(ctx); err != nil || !slices.Equal(f.there, []string{"first", "second"}) {
		t.Errorf("swept: %v, %q", err, f.there)
	}
	if err = s.Delete(ctx, "disk"); err != nil || len(f.there) != 0 {
		t.Errorf("deleted: %v, %q", err, f.there)
	}
	if l := open(t, fsys, f).Volumes(ctx); len(l) > 0 {
		t.Errorf("still there: %+v", l)
	}
}

// TestLeftovers: what cannot be removed now is removed by a sweep.
func TestLeftovers(t *testing.T) {
	ctx := t.Context()
	fsys, f := vfs.NewMem(), &fake{size: 1 << 20}
	s := open(t, fsys, f)
	create(t, s, "disk")
	l, err := s.CreateSnapshots(ctx, temporary("disk", "first"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err = s.Delete(ctx, "disk"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("deleted while it is read: %v", err)
	}
	f.away = true
	if err = s.DeleteSnapshot(ctx, "b1"); !errors.Is(err, ErrAway) {
		t.Error(err)
	}
	if _, err = s.Snapshot(l[0].ID); !errors.Is(err, serve.ErrNotFound) {
		t.Errorf("a snapshot that was deleted: %v", err)
	}
	if err = s.DropCheckpoint(ctx, "disk", "first"); err != nil {
		t.Errorf("drop what is away: %v", err)
	}
	if err = s.DropCheckpoint(ctx, "disk", "first"); !errors.Is(err, serve.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	f.away = false
	if len(f.there) != 2 {
		t.Errorf("there is %q", f.there)
	}
	if _, err = s.CreateSnapshots(ctx, temporary("disk", "second"), nil); err != nil || len(f.there) != 2 { // sweeps first
		t.Errorf("%v, %q", err, f.there)
	}
	f.away = true
	if err = s.DeleteSnapshot(ctx, "disk@b1"); !errors.Is(err, ErrAway) {
		t.Error(err)
	}
	if err = s.Delete(ctx, "disk"); err != nil { // a guest that is away for good
		t.Error(err)
	}
}

// TestSweepIsDue: whatever leaves something where a volume is served, and that it answers
// again, makes a sweep due; what leaves nothing does not.
func TestSweepIsDue(t *testing.T) {
	ctx := t.Context()
	f := &fake{size: 1 << 20}
	s := open(t, vfs.NewMem(), f)
	create(t, s, "disk")
	due := func() bool {
		select {
		case <-s.Due():
			return true
		default:
			return false
		}
	}
	try := func(what string, want bool, do func() error) {
		t.Helper()
		err := do()
		if (err != nil) != f.away {
			t.Errorf("%s: %v", what, err)
		}
		if due() != want {
			t.Errorf("%s: due %v", what, !want)
		}
	}
	snapshot := func(checkpoint string) func() error {
		return func() error {
			_, err := s.CreateSnapshots(ctx, temporary("disk", checkpoint), nil)
			return err
		}
	}
	end := func() error { return s.DeleteSnapshot(ctx, "disk@b1") }
	look := func() error {
		v, err := s.Volume(ctx, "disk")
		if err == nil && v.Error != "" {
			err = errors.New(v.Error)
		}
		return err
	}
	try("a snapshot", false, snapshot("first"))
	try("its end", false, end)
	try("another", false, snapshot("second"))
	try("a look", false, look)
	f.away = true
	try("an end that fails", true, end)
	try("a sweep that fails", false, func() error { return s.Sweep(ctx) })
	try("a look at what is away", false, look)
	f.away = false
	try("a look when it answers", true, look)
	try("another look", false, look)
	try("a sweep", false, func() error { return s.Sweep(ctx) })
	f.broken = errors.New("it broke")
	if err := snapshot("third")(); err == nil || !due() {
		t.Error("a snapshot that fails")
	}
	f.broken = nil
	try("a snapshot after it", false, snapshot("fourth"))
	f.away = true
	if err := s.DropCheckpoint(ctx, "disk", "fourth"); err != nil || !due() {
		t.Error("a checkpoint that cannot be dropped", err)
	}
	f.away = false
	try("a sweep while there is a snapshot", false, func() error { return s.Sweep(ctx) })
	try("its end", true, end)
	if err := s.Sweep(ctx); err != nil || due() || !slices.Equal(f.there, []string{"first", "second"}) {
		t.Errorf("%v, there is %q", err, f.there)
	}
}

// TestDamagedRecord: a volume whose record cannot be read is shown and can be deleted, and
// the others are not hurt.
func TestDamagedRecord(t *testing.T) {
	ctx := t.Context()
	fsys, f := vfs.NewMem(), &fake{size: 1 << 20}
	s := open(t, fsys, f)
	v := create(t, s, "disk")
	create(t, s, "other")
	later := uuid.NewString()
	for id, data := range map[string]string{v.ID: "{", later: `{"format":"cairn-source","version":9}`} {
		if err := vfs.WriteFile(fsys, filepath.Join("/state/sources", fileName(id)), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, fsys, f)
	l := s.Volumes(ctx)
	if len(l) != 3 {
		t.Fatalf("%+v", l)
	}
	for _, x := range l {
		if broken := x.Status == serve.StatusError; broken != (x.Name != "other") || broken && !strings.Contains(x.Error, fileName(x.ID)) {
			t.Errorf("%+v", x)
		}
	}
	for _, id := range []string{v.ID, later} {
		if _, err := s.CreateSnapshots(ctx, temporary(id, ""), nil); !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), "--id") {
			t.Errorf("snapshot: %v", err)
		}
		if err := s.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if l = open(t, fsys, f).Volumes(ctx); len(l) != 1 {
		t.Errorf("%+v", l)
	}
}

// TestSetRefuses: what a set does not take.
func TestSetRefuses(t *testing.T) {
	ctx := t.Context()
	f := &fake{size: 1 << 20}
	s := open(t, vfs.NewMem(), f)
	v := create(t, s, "disk")
	if _, err := s.CreateSnapshots(ctx, temporary("disk", "first"), nil); err != nil {
		t.Fatal(err)
	}
	add := func(r Record) error { _, err := s.Create(ctx, r); return err }
	attributes := func(a, was string) error {
		_, err := s.SetAttributes(ctx, "disk", serve.SetAttributes{Attributes: json.RawMessage(a), Was: json.RawMessage(was)})
		return err
	}
	snapshot := func(req serve.CreateSnapshots) error { _, err := s.CreateSnapshots(ctx, req, nil); return err }
	f.writer = "its qemu"
	for name, x := range map[string]struct {
		err  error
		want *serve.Error
		text string
	}{
		"name twice":       {add(Record{Name: "disk", Kind: KindNBD, URI: "nbd://h/x"}), serve.ErrConflict, "already"},
		"ID twice":         {add(Record{Name: "x", ID: v.ID, Kind: KindNBD, URI: "nbd://h/x"}), serve.ErrConflict, "already"},
		"no UUID":          {add(Record{Name: "x", ID: "x", Kind: KindNBD, URI: "nbd://h/x"}), serve.ErrInvalid, "no volume's ID"},
		"no name":          {add(Record{Kind: KindNBD, URI: "nbd://h/x"}), serve.ErrInvalid, "name"},
		"long URI":         {add(Record{Name: "x", Kind: KindNBD, URI: "nbd://h/" + strings.Repeat("x", maxURI)}), serve.ErrInvalid, "bytes"},
		"no URI":           {add(Record{Name: "x", Kind: KindNBD, URI: "x"}), serve.ErrInvalid, "no NBD URI"},
		"relative":         {add(Record{Name: "x", Kind: KindQEMU, Socket: "x", Node: "y"}), serve.ErrInvalid, "absolute"},
		"attributes":       {add(Record{Name: "x", Kind: KindNBD, URI: "nbd://h/x", Attributes: json.RawMessage("1")}), serve.ErrInvalid, "object"},
		"no object":        {attributes("[]", "{}"), serve.ErrInvalid, "object"},
		"others' changes":  {attributes("{}", `{"x":1}`), serve.ErrConflict, "read them again"},
		"unknown":          {snapshot(temporary("dusk", "")), serve.ErrNotFound, "dusk"},
		"two":              {snapshot(serve.CreateSnapshots{Volumes: []string{"disk", "disk"}}), serve.ErrInvalid, "alone"},
		"to stay":          {snapshot(serve.CreateSnapshots{Volumes: []string{"disk"}}), serve.ErrInvalid, "NBD has no snapshots"},
		"in use":           {snapshot(temporary("disk", "x")), serve.ErrBusy, "its qemu"},
		"checkpoint twice": {snapshot(serve.CreateSnapshots{Volumes: []string{"disk"}, Temporary: true, Force: true, Checkpoints: []string{"first"}}), serve.ErrConflict, "first"},
		"unknown snapshot": {s.DeleteSnapshot(ctx, "x"), serve.ErrNotFound, "x"},
		"verify nothing":   {s.VerifySnapshot(ctx, "x"), serve.ErrNotFound, "x"},
	} {
		if x.err == nil || !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
}

// TestRecordNotWritten: a snapshot that cannot be recorded is not there, and leaves nothing.
func TestRecordNotWritten(t *testing.T) {
	ctx := t.Context()
	fsys, f := vfs.NewMem(), &fake{size: 1 << 20}
	s := open(t, fsys, f)
	v := create(t, s, "disk")
	name := filepath.Join("/state/sources", fileName(v.ID)+".tmp")
	if err := fsys.Mkdir(name, 0o700); err != nil { // in the way of each new record
		t.Fatal(err)
	}
	if _, err := s.CreateSnapshots(ctx, temporary("disk", "first"), nil); err == nil {
		t.Fatal("recorded")
	}
	if l, err := s.Snapshots("disk"); err != nil || len(l) > 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := s.Sweep(ctx); err != nil || len(f.there) > 0 {
		t.Errorf("left: %q, %v", f.there, err)
	}
}

// TestRefusals: each refusal is a sentence about the volume; the data plane's can do all.
func TestRefusals(t *testing.T) {
	for kind, all := range cannot {
		for a := range all {
			err := Refuse(serve.Volume{Name: "disk", Kind: kind}, a)
			if !errors.Is(err, serve.ErrInvalid) || !strings.HasPrefix(err.Error(), "volume disk of kind "+kind+" ") {
				t.Errorf("%s, %d: %v", kind, a, err)
			}
		}
	}
	for a := Extend; a <= Mark; a++ {
		for _, kind := range []string{serve.KindFile, serve.KindDevice} {
			if err := Refuse(serve.Volume{Kind: kind}, a); err != nil {
				t.Errorf("%s, %d: %v", kind, a, err)
			}
		}
	}
}

func TestSameExport(t *testing.T) {
	for _, x := range []struct {
		a, b string
		same bool
	}{
		{"nbd://host", "nbd://HOST:10809/", true},
		{"nbd://host/a", "nbd://host/b", false},
		{"nbd://host:1/a", "nbd://host:2/a", false},
		{"nbds://host/a", "nbd://host/a", true},
		{"nbd+unix:///a?socket=/run/x", "nbd+unix:///a?socket=/run/./x", true},
		{"nbd+unix:///a?socket=/run/x", "nbd+unix:///a?socket=%2Frun%2Fx", true},
		{"nbd+unix:///a?socket=/run/x", "nbd+unix:///a@ro?socket=/run/x", false},
		{"nbd+unix:///a", "nbd+unix:///a", false},
		{"", "", false},
		{"vm1", "vm1", false},
		{"%", "%", false},
	} {
		if got := SameExport(x.a, x.b); got != x.same {
			t.Errorf("%s and %s: %t", x.a, x.b, got)
		}
	}
}

// TestListsDoNotAsk: a list tells what was seen last, a look at one volume how it is now.
func TestListsDoNotAsk(t *testing.T) {
	f := &fake{size: 1 << 20}
	s := open(t, vfs.NewMem(), f)
	create(t, s, "disk")
	if l := s.Volumes(t.Context()); len(l) != 1 || l[0].InUse {
		t.Errorf("%+v", l)
	}
	f.writer = "its qemu"
	if l := s.Volumes(t.Context()); l[0].InUse {
		t.Errorf("asked again: %+v", l)
	}
	if v, err := s.Volume(t.Context(), "disk"); err != nil || !v.InUse {
		t.Errorf("%+v, %v", v, err)
	}
	if l := s.Volumes(t.Context()); !l[0].InUse {
		t.Errorf("%+v", l)
	}
}
