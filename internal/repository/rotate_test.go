package repository

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

func mustRotate(tb testing.TB, r *Repository) Rotation {
	tb.Helper()
	done, err := r.RotateKey(tb.Context())
	if err != nil {
		tb.Fatalf("rotate: %v", err)
	}
	return done
}

// packsOf returns the packs on the stores, by the sealing epoch of their chunks.
func (c *cluster) packsOf(m *membership) map[int][]chunk.PackID {
	out := make(map[int][]chunk.PackID)
	seen := make(map[chunk.PackID]bool)
	for _, s := range c.mem {
		for _, name := range s.Names() {
			if id, ok := parsePackName(name); ok && !seen[id] {
				seen[id] = true
				epoch, _ := m.sealingOf(id.Epoch())
				out[epoch] = append(out[epoch], id)
			}
		}
	}
	return out
}

// Backups of all sealing epochs come back byte for byte; an incremental over a
// rotation stores what changed and nothing else, and blocks that are known are found
// whatever they are sealed under.
func TestRotate(t *testing.T) {
	c, r := fresh(t)
	rng := seeded(5)
	v := randomContent(rng, 300, 100)
	v.mustBackup(t, r, "b0", "", nil)
	all := map[string]*content{"b0": v.clone()}
	for n := 1; n <= 3; n++ {
		done := mustRotate(t, r)
		if done.Epoch != n || done.Finished || len(done.Stopped) > 0 || done.Left > 0 || !done.Key.Current || done.Key.Stores != 6 {
			t.Fatalf("rotation %d: %+v", n, done)
		}
		parent := fmt.Sprint("b", n-1)
		// The same once more: nothing but a root record.
		before := c.packsOf(r.membership())
		same := fmt.Sprint("same", n)
		v.mustBackup(t, r, same, parent, nil)
		all[same] = v.clone()
		if after := c.packsOf(r.membership()); len(after[n]) != 0 || len(after[n-1]) != len(before[n-1]) {
			t.Fatalf("an incremental without a change stored %v, before %v", after, before)
		}
		changed := v.change(rng, 6)
		id := fmt.Sprint("b", n)
		v.mustBackup(t, r, id, parent, changed)
		all[id] = v.clone()
		b, err := r.Backup(t.Context(), id)
		if err != nil || !b.Incremental {
			t.Fatalf("%+v, %v", b, err)
		}
		packs := c.packsOf(r.membership())
		if len(packs[n]) == 0 {
			t.Fatalf("nothing is sealed in epoch %d: %v", n, packs)
		}
		var stored int64
		for _, p := range packs[n] {
			length, lerr := r.containerLength(t.Context(), p)
			if lerr != nil {
				t.Fatal(lerr)
			}
			stored += length
		}
		if most := int64(len(changed)*(testBlock+200) + 64<<10); stored > most {
			t.Errorf("rotation %d: %d bytes were stored for %d changed blocks, at most %d are due", n, stored, len(changed), most)
		}
	}
	again := c.open(t)
	for _, repo := range []*Repository{r, again} {
		for id, want := range all {
			mustVerify(t, want, repo, id)
		}
	}
	if got := again.Info().Format; got != rotatedFormat {
		t.Errorf("format %d", got)
	}
	rep, err := again.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !rep.OK() {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	// Any k stores are enough.
	for a := range 6 {
		lost := c.without(a, (a+1)%6).open(t)
		for id, want := range all {
			mustVerify(t, want, lost, id)
		}
	}
}

// With a dedup index the blocks of older epochs are found again: a full backup of
// known content stores no block.
func TestRotateDeduplicates(t *testing.T) {
	c, _ := fresh(t)
	dir := t.TempDir()
	r := c.open(t, func(o *Options) { o.CacheDir = dir })
	v := randomContent(seeded(6), 200, 60)
	v.mustBackup(t, r, "b1", "", nil)
	mustRotate(t, r)
	v.mustBackup(t, r, "b2", "", nil)
	if packs := c.packsOf(r.membership())[1]; len(packs) > 0 {
		t.Errorf("blocks that are known were stored again: %v", packs)
	}
	mustVerify(t, v, c.open(t), "b2")
}

// The point of it: what is written behind a rotation does not open with what hangs on
// the master keys before it.
func TestOldKeyOpensNothingNew(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(7), 200, 60)
	v.mustBackup(t, r, "b1", "", nil)
	first := MasterKey(r.keys.sealing.all()[0])
	sheet := r.Sheet()
	mustRotate(t, r)
	w := randomContent(seeded(8), 200, 60)
	w.mustBackup(t, r, "b2", "", nil)
	old, err := masterKey(first).ring(r.id)
	if err != nil {
		t.Fatal(err)
	}
	d, err := chunk.NewDomain(old.content, r.id, "p")
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := r.domain("p")
	if err != nil {
		t.Fatal(err)
	}
	chunks := map[string]int{}
	for _, b := range []string{"b1", "b2"} {
		img, ierr := r.Image(t.Context(), b)
		if ierr != nil {
			t.Fatal(ierr)
		}
		for n := range img.Geometry().Blocks() {
			ref, ok, lerr := img.lookup(t.Context(), n)
			if lerr != nil {
				t.Fatal(lerr)
			}
			if !ok {
				continue
			}
			chunks[b]++
			sealed := make([]byte, ref.Length)
			if err = r.readContainer(t.Context(), ref.Pack, sealed, int64(ref.Offset)); err != nil {
				t.Fatal(err)
			}
			if _, err = openChunk(genuine, chunk.Data, ref, sealed); err != nil {
				t.Fatal(err)
			}
			if _, err = openChunk(d, chunk.Data, ref, sealed); (err == nil) != (b == "b1") {
				t.Fatalf("a chunk of %s, by the first key: %v", b, err)
			}
		}
		_ = img.Close()
	}
	if chunks["b1"] == 0 || chunks["b2"] == 0 {
		t.Fatal(chunks)
	}
	testOldRoots(t, c, r, &old)
	// The chain leads back, not forward.
	if _, err = r.membership().masters(r.id, 1, masterKey(first)); !errors.Is(err, errEnvelope) {
		t.Errorf("the first key opens the chain: %v", err)
	}
	// Neither the old sheet nor the first key opens the repository; the new sheet
	// opens all of it.
	for what, text := range map[string]string{"sheet": sheet, "first": sheetOf(masterKey(first))} {
		k, perr := ParseSheet(text)
		if perr != nil {
			t.Fatal(perr)
		}
		if _, err = Open(t.Context(), Options{Stores: c.stores(), Master: &k, Timing: eager}); !errors.Is(err, ErrPassword) || !strings.Contains(err.Error(), "printed before the key of repository") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !strings.Contains(r.Sheet(), "after rotation 1") || strings.Contains(sheet, "rotation") {
		t.Error(r.Sheet())
	}
	k, err := ParseSheet(r.Sheet())
	if err != nil {
		t.Fatal(err)
	}
	again := c.open(t, func(o *Options) { o.Password, o.Master = nil, &k })
	mustVerify(t, v, again, "b1")
	mustVerify(t, w, again, "b2")
	if _, err = again.RotateKey(t.Context()); !errors.Is(err, ErrInvalid) {
		t.Errorf("rotated without a password: %v", err)
	}
	if _, err = again.AddKey(t.Context(), []byte("new"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	if err = openWith(t, c, "new"); err != nil {
		t.Error(err)
	}
	mustRotate(t, r)
	if _, err = Open(t.Context(), Options{Stores: c.stores(), Master: &k, Timing: eager}); !errors.Is(err, ErrPassword) || !strings.Contains(err.Error(), "printed before the key of repository") {
		t.Errorf("the sheet between two rotations: %v", err)
	}
}

// testOldRoots tries root records by the keys of the first epoch: under the number
// that they have, and as if they had none.
func testOldRoots(t *testing.T, c *cluster, r *Repository, old *keyring) {
	t.Helper()
	b, err := r.Backup(t.Context(), "b1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range c.mem[0].Names() {
		session, ok := rootSession(name)
		if !ok {
			continue
		}
		object, gerr := c.mem[0].Get(t.Context(), name, 0, -1, nil)
		if gerr != nil {
			t.Fatal(gerr)
		}
		isOld := b.Session == session.String()
		if _, err = old.openRoot(name, object); (err == nil) != isOld || !isOld && !errors.Is(err, errEpoch) {
			t.Errorf("root record of %s, by the first key: %v", session, err)
		}
		if isOld {
			continue
		}
		e, err := parseEnvelope(object)
		if err != nil || e.epoch != 1 {
			t.Fatal(e.epoch, err)
		}
		forged, err := old.sealEnvelope(kindRoot, name, e.payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = old.openRoot(name, forged); !errors.Is(err, errEnvelope) {
			t.Errorf("a root record as if it were of the first epoch: %v", err)
		}
	}
}

// All other passwords stop working, and are named; added again they work.
func TestRotateStopsPasswords(t *testing.T) {
	c, r := fresh(t)
	for _, pw := range []string{"second", "third"} {
		if _, err := r.AddKey(t.Context(), []byte(pw), "of "+pw, cheapKDF); err != nil {
			t.Fatal(err)
		}
	}
	// A store that is away keeps the old keys; another one has them put back.
	c.faulty[3].SetDown(true)
	kept := c.mem[5].Clone()
	done := mustRotate(t, c.open(t))
	var stopped []string
	for _, k := range done.Stopped {
		stopped = append(stopped, k.Label)
	}
	slices.Sort(stopped)
	if !slices.Equal(stopped, []string{"of second", "of third"}) || done.Left == 0 {
		t.Fatalf("%+v", done)
	}
	c.heal()
	for _, name := range kept.Names() {
		if strings.HasPrefix(name, keyPrefix) {
			object, err := kept.Get(t.Context(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.mem[5].Replace(name, object)
		}
	}
	if err := openWith(t, c, string(password)); err != nil {
		t.Fatal(err)
	}
	for _, pw := range []string{"second", "third", "wrong"} {
		if err := openWith(t, c, pw); !errors.Is(err, ErrPassword) {
			t.Errorf("%s: %v", pw, err)
		}
	}
	// Without the marks of removal the membership is enough.
	hurt := c.clone()
	hurt.removeAll(removedKeyPrefix)
	if err := openWith(t, hurt, string(password)); err != nil {
		t.Fatal(err)
	}
	if err := openWith(t, hurt, "second"); !errors.Is(err, ErrPassword) || !strings.Contains(err.Error(), "before it was rotated") {
		t.Error(err)
	}
	again := c.open(t)
	if _, err := again.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	if err := openWith(t, c, "second"); err != nil {
		t.Error(err)
	}
	if _, err := again.Repair(t.Context(), RepairOptions{Apply: true}); err != nil {
		t.Fatal(err)
	}
	if err := openWith(t, c, "third"); !errors.Is(err, ErrPassword) {
		t.Error(err)
	}
	// The keys that open are those of the newest master key; the last one stays.
	keys, err := again.Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Fatalf("%+v, %v", keys, err)
	}
}

// Processes that were there before a rotation: a session goes on as it began; the
// next one gets the new key by the password, or is refused in words.
func TestRotateUnderSessions(t *testing.T) {
	c, r := fresh(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	k, err := ParseSheet(r.Sheet())
	if err != nil {
		t.Fatal(err)
	}
	same := c.open(t)
	second := c.open(t, func(o *Options) { o.Password = []byte("second") })
	sheet := c.open(t, func(o *Options) { o.Password, o.Master = nil, &k })
	reader := c.open(t)
	v := randomContent(seeded(9), 200, 60)
	v.mustBackup(t, same, "b1", "", nil)
	inner, before := randomContent(seeded(10), 200, 60), map[*Repository]*Session{}
	for n, p := range []*Repository{same, second} {
		s, berr := p.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: fmt.Sprint("v", n)})
		if berr != nil {
			t.Fatal(berr)
		}
		before[p] = s
	}
	mustRotate(t, r)
	for n, p := range []*Repository{same, second} {
		s := before[p]
		top, werr := inner.write(t.Context(), s, nil)
		if werr != nil {
			t.Fatal(werr)
		}
		id := fmt.Sprint("during", n)
		if o, cerr := s.Commit(t.Context(), Root{BackupID: id, Geometry: inner.geometry(), Top: top}); o != OutcomeCommitted {
			t.Fatalf("a session over the rotation: %v, %v", o, cerr)
		}
		mustVerify(t, inner, r, id)
		mustVerify(t, inner, p, id)
	}
	if len(c.packsOf(r.membership())[1]) > 0 {
		t.Fatal("a session that began before wrote under the new key")
	}
	mustVerify(t, v, second, "b1")
	// The same password opens the new key.
	w := v.clone()
	w.mustBackup(t, same, "b2", "b1", w.change(seeded(11), 5))
	if len(c.packsOf(r.membership())[1]) == 0 {
		t.Fatal("a session behind the rotation wrote under the old key")
	}
	mustVerify(t, w, r, "b2")
	// A reader that never writes meets the new root record.
	mustVerify(t, w, reader, "b2")
	for what, p := range map[string]*Repository{"second": second, "sheet": sheet} {
		_, err = w.backup(t.Context(), p, "b3"+what, "b1", nil)
		if !errors.Is(err, ErrPassword) || !strings.Contains(err.Error(), "was rotated") {
			t.Errorf("%s: a session without the new key: %v", what, err)
		}
		if err = w.verify(t.Context(), p, "b2"); !errors.Is(err, ErrPassword) {
			t.Errorf("%s: read without the new key: %v", what, err)
		}
		if _, err = p.AddKey(t.Context(), []byte("third"), "", cheapKDF); !errors.Is(err, ErrPassword) {
			t.Errorf("%s: a password for the old key: %v", what, err)
		}
		if _, err = p.Prune(t.Context(), hasty); !errors.Is(err, ErrPassword) {
			t.Errorf("%s: a prune: %v", what, err)
		}
	}
	// The way out that the sentence names.
	if _, err = r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	w.mustBackup(t, second, "b3", "b2", w.change(seeded(12), 5))
	mustVerify(t, w, r, "b3")
}

// Stores are replaced and added, what is dead is pruned, shards are rebuilt, packs are
// moved, all over rotations.
func TestRotateAndTheRest(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	mustRotate(t, r)
	v := w.second.clone()
	v.mustBackup(t, r, "third", "second", v.change(seeded(3), 10))
	id := w.memberAt(t, 1)
	w.wipe(1)
	if _, err := r.ReplaceStore(t.Context(), id, w.faulty[1], nil); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	w.mem = append(w.mem, memstore.New("new"))
	w.faulty = append(w.faulty, memstore.WithFaults(w.mem[6], memstore.Faults{}))
	if _, err := r.AddStore(t.Context(), w.faulty[6], nil); err != nil {
		t.Fatal(err)
	}
	m := r.membership()
	if epoch, ok := m.sealingOf(uint16(m.Active)); !ok || epoch != 2 || m.epochs() != 2 {
		t.Fatalf("packs of the added store's placements are of sealing epoch %d of %d", epoch, m.epochs())
	}
	v.mustBackup(t, r, "fourth", "third", v.change(seeded(4), 10))
	mustRotate(t, r)
	if got := len(r.membership().Placements[r.membership().Active:]); got != 7 {
		t.Fatalf("%d placements for new packs behind the rotation, 7 before", got)
	}
	// One loses shards, one whole control objects.
	for n, name := range w.mem[2].Names() {
		if strings.HasPrefix(name, packPrefix) && n%2 == 0 || strings.HasPrefix(name, keyPrefix) || strings.HasPrefix(name, membersPrefix) {
			_ = w.mem[2].Delete(t.Context(), name)
		}
	}
	again := w.open(t)
	if rep, err := again.Repair(t.Context(), RepairOptions{Apply: true}); err != nil || len(rep.Lost) > 0 {
		t.Fatalf("repair: %+v, %v", rep, err)
	}
	if err := again.Delete(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	w.drained(t, again)
	w.intact(t, again, "pruned")
	mustVerify(t, v, again, "fourth")
	if rep, err := again.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	if err := again.Delete(t.Context(), "fourth"); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Undelete(t.Context(), "fourth"); err != nil {
		t.Fatal(err)
	}
	// What is alive of packs of any epoch moves into one of the newest.
	if err := again.Delete(t.Context(), "once2"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, again)
	o := hasty
	o.Compact = 0.02
	rep, err := again.Prune(t.Context(), o)
	if err != nil || rep.Compacted == 0 || len(rep.Problems) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	last := w.open(t)
	mustVerify(t, v, last, "fourth")
	w.intact(t, last, "compacted")
}
