package repository

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

func sheetOf(k masterKey) string {
	var b strings.Builder
	for n := range sheetLines {
		fmt.Fprintf(&b, "Key %d: %s\n", n+1, sheetLine(n, k[n*sheetChunk:(n+1)*sheetChunk]))
	}
	return b.String()
}

// What is on a sheet comes back, as people type it; one character that is wrong,
// or two neighbors that change places, are found.
func TestSheet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k masterKey
		copy(k[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		sheet := sheetOf(k)
		var typed strings.Builder
		for n := range sheetLines {
			fmt.Fprintf(&typed, " key %d : %s\n", n+1, strings.NewReplacer("0", "o", "1", "l", " ", "-").Replace(sheetLine(n, k[n*sheetChunk:(n+1)*sheetChunk])))
		}
		for _, s := range []string{sheet, strings.ToLower(sheet), typed.String(), "more text\n" + sheet + "\nand more: it"} {
			if got, err := ParseSheet(s); err != nil || masterKey(got) != k {
				t.Fatalf("%q: %x, %v", s, got, err)
			}
		}
	})
	// Each character replaced by each other, and each two neighbors exchanged: two
	// bytes of check let one in 65,536 pass, of these few thousand none.
	var k masterKey
	for i := range k {
		k[i] = byte(i * 37)
	}
	lines := strings.SplitAfter(sheetOf(k), "\n")
	tries := 0
	mistyped := func(n int, line []byte) {
		t.Helper()
		if string(line) == lines[n] {
			return
		}
		tries++
		typed := slices.Clone(lines)
		typed[n] = string(line)
		if _, err := ParseSheet(strings.Join(typed, "")); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprintf("Key %d", n+1)) {
			t.Fatalf("%q for %q: %v", line, lines[n], err)
		}
	}
	for n := range sheetLines {
		for at := len("Key 1: "); at < len(lines[n])-1; at++ {
			if lines[n][at] == ' ' {
				continue
			}
			for _, digit := range []byte(sheetDigits) {
				line := []byte(lines[n])
				line[at] = digit
				mistyped(n, line)
			}
			if line := []byte(lines[n]); line[at+1] != ' ' && line[at+1] != '\n' {
				line[at], line[at+1] = line[at+1], line[at]
				mistyped(n, line)
			}
		}
	}
	if tries < 1900 {
		t.Errorf("%d tries", tries)
	}
	if _, err := ParseSheet("Key 1: 0000"); err == nil || !strings.Contains(err.Error(), "has 4 characters, not 16") {
		t.Error(err)
	}
}

func FuzzParseSheet(f *testing.F) {
	f.Add(sheetOf(masterKey{1, 2, 3}))
	f.Add("Key 1: U")
	f.Add("key 9: 0000 0000 0000 0000\nKEY 4:")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseSheet(text)
		if err != nil {
			return
		}
		if again, err := ParseSheet(sheetOf(masterKey(k))); err != nil || again != k {
			t.Fatalf("%x becomes %x, %v", k, again, err)
		}
	})
}

func openWith(t *testing.T, c *cluster, pw string) error {
	t.Helper()
	r, err := Open(t.Context(), Options{Stores: c.stores(), Password: []byte(pw), Timing: eager})
	if err != nil {
		return err
	}
	return r.Close()
}

// Any sequence of passwords that are added and removed, on stores that come and
// go: those that were removed open nothing, all others the repository.
func TestKeysModel(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		c, r := fresh(t)
		valid := map[string]string{string(password): ""} // password -> key
		all, err := r.Keys(t.Context())
		if err != nil || len(all) != 1 || !all[0].Current || all[0].Stores != 6 {
			t.Fatalf("%+v, %v", all, err)
		}
		valid[string(password)] = all[0].ID
		var dead []string
		for n := range 14 {
			down := rng.IntN(6)
			c.faulty[down].SetDown(true)
			if rng.IntN(3) > 0 || len(valid) == 1 {
				pw := fmt.Sprint("password ", n)
				k, err := r.AddKey(t.Context(), []byte(pw), pw, cheapKDF)
				if err != nil {
					t.Fatal(err)
				}
				valid[pw] = k.ID
			} else {
				for pw, id := range valid {
					if _, err := r.RemoveKey(t.Context(), id, true); err != nil {
						t.Fatal(err)
					}
					dead = append(dead, pw)
					delete(valid, pw)
					break
				}
			}
			c.faulty[down].SetDown(false)
			if rng.IntN(4) == 0 {
				if _, err := r.Repair(t.Context(), RepairOptions{Apply: true}); err != nil {
					t.Fatal(err)
				}
			}
			if rng.IntN(4) == 0 {
				mustPrune(t, r)
			}
			for pw := range valid {
				if err := openWith(t, c, pw); err != nil {
					t.Fatalf("seed %d, step %d: %q: %v", seed, n, pw, err)
				}
			}
			for _, pw := range dead {
				if err := openWith(t, c, pw); !errors.Is(err, ErrPassword) {
					t.Fatalf("seed %d, step %d: %q, which was removed, opens: %v", seed, n, pw, err)
				}
			}
			if l, err := r.Keys(t.Context()); err != nil || len(l) != len(valid) {
				t.Fatalf("%+v, %v", l, err)
			}
		}
		for _, id := range valid {
			if _, err := r.RemoveKey(t.Context(), id, true); len(valid) == 1 && !errors.Is(err, ErrInvalid) {
				t.Fatalf("the last one: %v", err)
			}
			break
		}
	}
}

// The sheet opens a repository that has no key left, and no other.
func TestRecover(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 60, 20)
	v.mustBackup(t, r, "b", "", nil)
	sheet := r.Sheet()
	if !strings.Contains(sheet, "mem:0") || !strings.Contains(sheet, r.Info().ID) {
		t.Error(sheet)
	}
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, keyPrefix) {
				_ = m.Delete(t.Context(), name)
			}
		}
	}
	if err := openWith(t, c, string(password)); err == nil {
		t.Fatal("it opens without a key")
	}
	k, err := ParseSheet(sheet)
	if err != nil {
		t.Fatal(err)
	}
	again := c.open(t, func(o *Options) { o.Password, o.Master = nil, &k })
	mustVerify(t, v, again, "b")
	if _, err = again.AddKey(t.Context(), []byte("new"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	if err = openWith(t, c, "new"); err != nil {
		t.Fatal(err)
	}
	other := newCluster(6)
	other.init(t, 4, 2)
	if _, err := Open(t.Context(), Options{Stores: other.stores(), Master: &k, Timing: eager}); !errors.Is(err, ErrPassword) {
		t.Fatalf("the sheet of another repository: %v", err)
	}
}

func TestTooManyKeys(t *testing.T) {
	c, r := fresh(t)
	for n := range maxKeys - 1 {
		if _, err := r.AddKey(t.Context(), []byte{byte(n + 1)}, "", cheapKDF); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.AddKey(t.Context(), []byte("one more"), "", cheapKDF); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	for n := range maxKeys - 1 {
		if err := openWith(t, c, string([]byte{byte(n + 1)})); err != nil {
			t.Fatal(n, err)
		}
	}
	for _, f := range c.faulty[:5] {
		f.SetFaults(memstore.Faults{Decide: func(memstore.Call) memstore.Fault { return memstore.Down }})
	}
	if _, err := r.AddKey(t.Context(), []byte("x"), "", cheapKDF); err == nil {
		t.Fatal("added without stores")
	}
}
