package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
			length, lerr := (&checker{r: r}).length(t.Context(), p)
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
			if _, err = openChunk(genuine, chunk.Data, ref, sealed, nil); err != nil {
				t.Fatal(err)
			}
			if _, err = openChunk(d, chunk.Data, ref, sealed, nil); (err == nil) != (b == "b1") {
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

// A rotation that is killed at any of its calls: the password that ran it opens the
// repository at every moment, all that was written comes back, backups go on, and the
// same command ends it: then the other password is out.
func TestRotateKilled(t *testing.T) {
	w := newWorld(t)
	if _, err := w.open(t).AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	finished, fresh := 0, 0
	for n := int64(1); ; n += stride(4, 23) {
		c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
		ctx, kill := context.WithCancelCause(t.Context())
		r := c.open(t)
		c.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		_, err := r.RotateKey(ctx)
		killed := ctx.Err() != nil
		kill(nil)
		c.heal()
		if !killed {
			if err != nil {
				t.Fatalf("the rotation that nobody killed: %v", err)
			}
			break
		}
		when := fmt.Sprintf("killed at call %d", n)
		// Any store may be lost besides.
		for lost := range 6 {
			if err = openWith(t, c.without(lost), string(password)); err != nil {
				t.Fatalf("%s, store %d lost: %v", when, lost, err)
			}
		}
		r = c.open(t)
		c.intact(t, r, when)
		old := r.membership().epochs() == 0
		if err = openWith(t, c.cluster, "second"); old != (err == nil) || err != nil && !errors.Is(err, ErrPassword) {
			t.Fatalf("%s: the other password, in epoch %d: %v", when, r.membership().epochs(), err)
		}
		v := w.second.clone()
		v.mustBackup(t, r, "meanwhile", "second", v.change(seeded(3), 4))
		marks, err := r.Changes(t.Context())
		if err != nil || len(marks) > 1 {
			t.Fatalf("%s: %+v, %v", when, marks, err)
		}
		switch {
		case len(marks) == 1 && n%3 == 0:
			if err = r.AbandonChange(t.Context(), marks[0].ID); err != nil {
				t.Fatalf("%s: abandon: %v", when, err)
			}
		case len(marks) == 1:
			if _, err = c.open(t, func(o *Options) { o.Password = []byte("second") }).RotateKey(t.Context()); !errors.Is(err, ErrChange) {
				t.Fatalf("%s: gone on with by another password: %v", when, err)
			}
			if _, err = r.Prune(t.Context(), hasty); !errors.Is(err, ErrChange) {
				t.Fatalf("%s: a prune beside it: %v", when, err)
			}
		}
		done, err := r.RotateKey(t.Context())
		if err != nil {
			t.Fatalf("%s: again: %v", when, err)
		}
		if done.Finished {
			finished++
		} else {
			fresh++
		}
		r = c.open(t)
		if got := r.membership().epochs(); got != 1 {
			t.Fatalf("%s, then again: epoch %d", when, got)
		}
		if err = openWith(t, c.cluster, "second"); !errors.Is(err, ErrPassword) {
			t.Fatalf("%s, then again: the other password: %v", when, err)
		}
		keys, err := r.Keys(t.Context())
		if err != nil || len(keys) != 1 || keys[0].Stores != 6 {
			t.Fatalf("%s, then again: %+v, %v", when, keys, err)
		}
		c.intact(t, r, when+", then again")
		mustVerify(t, v, r, "meanwhile")
		c.drained(t, r)
		c.intact(t, r, when+", then pruned")
		if marks, err = r.Changes(t.Context()); err != nil || len(marks) > 0 {
			t.Fatalf("%s: left: %+v, %v", when, marks, err)
		}
		if t.Failed() {
			return
		}
	}
	if finished == 0 || fresh == 0 {
		t.Fatalf("%d rotations were killed behind the publication, %d before", finished, fresh)
	}
}

// Two that rotate at once, by two passwords: one membership, and whoever is told that
// it was rotated can open it.
func TestTwoRotateAtOnce(t *testing.T) {
	w, _ := fresh(t)
	if _, err := w.open(t).AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	for n := int64(1); ; n += stride(5, 31) {
		c := w.clone()
		r := c.open(t)
		other := c.process().open(t, func(o *Options) { o.Password = []byte("second") })
		begun := false
		var second error
		c.onCalls(func(call int64) error {
			if call == n {
				begun = true
				_, second = other.RotateKey(t.Context())
			}
			return nil
		})
		_, first := r.RotateKey(t.Context())
		c.heal()
		if !begun {
			break
		}
		versions := make(map[string]bool)
		for _, m := range c.mem {
			object, err := m.Get(t.Context(), membersName(2), 0, -1, nil)
			if err == nil {
				versions[string(object)] = true
			}
		}
		if len(versions) > 1 {
			t.Fatalf("call %d: %d memberships of one version", n, len(versions))
		}
		one, two := openWith(t, c, string(password)), openWith(t, c, "second")
		if one != nil && two != nil {
			t.Fatalf("call %d: nobody opens it: %v; %v", n, one, two)
		}
		if first == nil && second == nil || first == nil && one != nil && second != nil || second == nil && two != nil && first != nil {
			t.Fatalf("call %d: told %v and %v; the passwords: %v and %v", n, first, second, one, two)
		}
	}
}

// Where fewer stores answer than any reader meets one of, nothing is rotated; a store
// that missed a rotation is told, and until then leads nobody back.
func TestRotateWithStoresAway(t *testing.T) {
	c := newCluster(3)
	c.init(t, 1, 2)
	v := randomContent(seeded(2), 60, 20)
	v.mustBackup(t, c.open(t), "b", "", nil)
	c.faulty[2].SetDown(true)
	if _, err := c.open(t).RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatalf("rotated on two of three stores, of which any one has to do: %v", err)
	}
	c.heal()
	for n := range 3 {
		only := c.without((n+1)%3, (n+2)%3).open(t)
		if only.membership().epochs() != 0 {
			t.Fatal("it was rotated")
		}
		mustVerify(t, v, only, "b")
	}
	// It is lost behind the key and the mark: the same command ends it, and then any
	// store is enough.
	r := c.open(t)
	for _, f := range c.faulty[1:] {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "put" && strings.HasPrefix(call.Name, membersPrefix) {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatal(err)
	}
	c.heal()
	if done, err := c.open(t).RotateKey(t.Context()); err != nil || !done.Finished || done.Epoch != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	for n := range 3 {
		only := c.without((n+1)%3, (n+2)%3).open(t)
		if only.membership().epochs() != 1 {
			t.Errorf("store %d alone leads back to epoch %d", n, only.membership().epochs())
		}
		mustVerify(t, v, only, "b")
	}
}

// A rotation that was abandoned after one store had taken its membership, and another
// one: processes from before follow the one whose key they can open.
func TestRotationGivenUpHalfWay(t *testing.T) {
	c, r := fresh(t)
	before := c.open(t)
	for _, f := range c.faulty[1:] {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "put" && strings.HasPrefix(call.Name, membersPrefix) {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatal(err)
	}
	c.heal()
	c.faulty[0].SetDown(true)
	other := c.open(t)
	marks, err := other.Changes(t.Context())
	if err != nil || len(marks) != 1 || marks[0].What != changeRotate || marks[0].Joining != "" {
		t.Fatalf("%+v, %v", marks, err)
	}
	if err = other.AbandonChange(t.Context(), marks[0].ID); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, other)
	c.heal()
	v := randomContent(seeded(2), 60, 20)
	for n, p := range []*Repository{before, c.open(t)} {
		id := fmt.Sprint("b", n)
		v.mustBackup(t, p, id, "", nil)
		mustVerify(t, v, other, id)
		if got, want := p.membership().keyCheck(), other.membership().keyCheck(); !bytes.Equal(got, want) {
			t.Errorf("process %d follows the rotation that was given up", n)
		}
	}
	// A prune asks every store, and this one has no membership that holds: a repair
	// gives it the one of the others.
	if _, err = other.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
		t.Errorf("prune: %v", err)
	}
	if rep, err := other.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true}); err != nil || len(rep.Lost) > 0 {
		t.Fatalf("repair: %+v, %v", rep, err)
	}
	mustPrune(t, other)
}

// A rotation that dies between two looks of another one at the marks: the other gives
// way, and goes on when the dead one is abandoned.
func TestRotateMeetsAnother(t *testing.T) {
	c, r := fresh(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	dying := c.process()
	other := dying.open(t, func(o *Options) { o.Password = []byte("second") })
	for _, f := range dying.faulty {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "put" && strings.HasPrefix(call.Name, membersPrefix) {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	var once sync.Once
	var died error
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if call.Op == "put" && strings.HasPrefix(call.Name, keyPrefix) {
				once.Do(func() { _, died = other.RotateKey(t.Context()) })
			}
			return nil
		}})
	}
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrChange) || !strings.Contains(err.Error(), "cairn repo changes --abandon") {
		t.Fatal(err)
	}
	if !errors.Is(died, ErrTooFewStores) {
		t.Fatal(died)
	}
	c.heal()
	for _, pw := range []string{string(password), "second"} {
		if err := openWith(t, c, pw); err != nil {
			t.Fatalf("%s: %v", pw, err)
		}
	}
	// Neither of the two new keys opens anything, and they are in nobody's way.
	keys, err := r.Keys(t.Context())
	if err != nil || len(keys) != 4 || keys[0].Old || keys[1].Old || !keys[2].Old || !keys[3].Old {
		t.Fatalf("%+v, %v", keys, err)
	}
	if _, err = r.RemoveKey(t.Context(), keys[2].ID, true); !errors.Is(err, ErrInvalid) {
		t.Errorf("the key of a rotation that may go on is removed: %v", err)
	}
	marks, err := r.Changes(t.Context())
	if err != nil || len(marks) != 1 {
		t.Fatalf("%+v, %v", marks, err)
	}
	if err = r.AbandonChange(t.Context(), marks[0].ID); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	if keys, err = r.Keys(t.Context()); err != nil || len(keys) != 1 || keys[0].Stores != 6 {
		t.Fatalf("%+v, %v", keys, err)
	}
	if err = openWith(t, c, "second"); !errors.Is(err, ErrPassword) {
		t.Error(err)
	}
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
	// A pack of each epoch is compacted into one of the newest.
	x := &compactor{t, w.cluster, again}
	number := byte(0)
	for _, packs := range w.packsOf(again.membership()) {
		for _, p := range packs {
			number++
			f := x.copy(p, number)
			x.announce(f, ident{number})
			for _, s := range w.mem {
				_ = s.Delete(t.Context(), packName(p))
			}
		}
	}
	if number < 3 {
		t.Fatalf("%d packs", number)
	}
	last := w.open(t)
	mustVerify(t, v, last, "fourth")
	w.intact(t, last, "compacted")
}

// Somebody who has an old key and can write to a store takes no process back to it.
func TestForgedMembership(t *testing.T) {
	c, r := fresh(t)
	mustRotate(t, r)
	first := r.keys.sealing.all()[:1]
	old, err := newKeyring(first, r.id)
	if err != nil {
		t.Fatal(err)
	}
	genuine := r.membership()
	for what, forge := range map[string]func(m *membership){
		"without the rotation": func(m *membership) {
			m.Sealing, m.Active, m.MinReader = nil, 0, firstFormat
		},
		"other stores": func(m *membership) { m.Losses = 0 },
	} {
		m := genuine.next()
		m.Version = 9
		forge(m)
		payload := *m
		if m.epochs() > 0 {
			payload.Proof = genuine.Proof
		}
		object, err := sealForged(&old, &payload)
		if err != nil {
			t.Fatal(err)
		}
		hurt := c.clone()
		for _, s := range hurt.mem {
			s.Replace(membersName(9), object)
		}
		p := hurt.open(t)
		for range 2 {
			if got := p.membership(); got.Version != genuine.Version || got.epochs() != 1 {
				t.Errorf("%s: version %d, epoch %d", what, got.Version, got.epochs())
			}
			if _, err = p.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// A membership has one proof only, and its sealing epochs make sense.
func TestMembershipSealing(t *testing.T) {
	_, r := fresh(t)
	mustRotate(t, r)
	mustRotate(t, r)
	good := r.membership()
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[uint16]int{0: 0, 1: 1, 2: 2} {
		if got, ok := good.sealingOf(p); !ok || got != want {
			t.Errorf("placement %d: sealing epoch %d, %v", p, got, ok)
		}
	}
	if _, ok := good.sealingOf(3); ok {
		t.Error("a placement that is not there has a sealing epoch")
	}
	for what, spoil := range map[string]func(m *membership){
		"first":      func(m *membership) { m.Sealing[0].First = 0 },
		"order":      func(m *membership) { m.Sealing[0], m.Sealing[1] = m.Sealing[1], m.Sealing[0] },
		"equal":      func(m *membership) { m.Sealing[1].First = 1 },
		"inactive":   func(m *membership) { m.Active = 1 },
		"nonce":      func(m *membership) { m.Sealing[1].Nonce = nil },
		"previous":   func(m *membership) { m.Sealing[1].Previous = make([]byte, 1<<10) },
		"check":      func(m *membership) { m.Sealing[0].Check = nil },
		"old format": func(m *membership) { m.MinReader = firstFormat },
		"too many":   func(m *membership) { m.Sealing = slices.Repeat(m.Sealing, maxEpochs) },
	} {
		m := good.next()
		spoil(m)
		if m.check() == nil {
			t.Errorf("%s: it passes", what)
		}
	}
	all := r.keys.sealing.all()
	if masters, err := good.masters(r.id, 2, all[2]); err != nil || !slices.Equal(masters, all) {
		t.Errorf("the chain: %v", err)
	}
	if _, err := good.masters(r.id, 1, all[2]); err == nil {
		t.Error("a key opens the chain in the place of another")
	}
	many := good.next()
	for len(many.Sealing) < maxEpochs-1 {
		many.Sealing = append(many.Sealing, many.Sealing[0])
	}
	if _, err := many.rotated(r.id, all[0], all[1], r.o.Now()); !errors.Is(err, ErrInvalid) {
		t.Errorf("one rotation too many: %v", err)
	}
}

// sealForged is sealMembership of somebody who cannot prove it.
func sealForged(k *keyring, m *membership) ([]byte, error) {
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return k.sealEnvelope(kindMembers, membersName(m.Version), payload)
}
