package volume

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

func FuzzRecord(f *testing.F) {
	r := record{
		Format: recordFormat, Version: recordVersion, ID: uuid.New(), Name: "v", Kind: kindFile, Managed: true, Size: bs, BlockSize: bs, Created: time.Now().UTC(),
		Snapshots: []snapshotRecord{{ID: uuid.New(), Epoch: 3, Size: bs}},
	}
	good, err := r.encode()
	must(f, err)
	f.Add(good)
	f.Add([]byte(`{"format":"cairn-volume","version":2}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeRecord(p)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := r.encode()
		must(t, err)
		back, err := decodeRecord(again)
		if err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		a, _ := json.Marshal(r)
		b, _ := json.Marshal(back)
		if !bytes.Equal(a, b) {
			t.Fatalf("%s is not %s", b, a)
		}
	})
}

func FuzzBeat(f *testing.F) {
	b := beatRecord{Volume: uuid.New(), Generation: 3, Boot: uuid.NewString(), Lease: time.Now(), Size: bs, Clean: true}
	f.Add(b.encode())
	f.Add(make([]byte, beatSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		repair(p)
		b, err := decodeBeat(p)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		back, err := decodeBeat(b.encode())
		if err != nil || !reflect.DeepEqual(b, back) {
			t.Fatalf("%+v is not %+v: %v", back, b, err)
		}
	})
}

// repair makes the checksum of a sector right, so that fuzzing gets past it.
func repair(p []byte) {
	if len(p) == sectorSize {
		binary.BigEndian.PutUint32(p[sectorSize-4:], crc32.Checksum(p[:sectorSize-4], castagnoli))
	}
}

var fuzzID = uuid.MustParse("00000000-0000-4000-8000-000000000001")

// makeLog makes a log of n records and returns its bytes.
func makeLog(tb testing.TB, n int) []byte {
	tb.Helper()
	m := vfs.NewMem()
	l, err := createLog(m, "/1.log", fuzzID, 1, 16*bs, &spaceGuard{}, true)
	must(tb, err)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		p := preimage{block: int64(i), length: 512 * (1 + i%3), buf: newRecordBuf()}
		clear(p.content())
		if i%2 == 0 {
			copy(p.content(), fill(r, p.length))
		}
		p.seal()
		_, err = l.append(&p)
		must(tb, err)
		p.free()
		if i%3 == 0 {
			must(tb, l.flush.wait())
		}
	}
	b, err := vfs.ReadFile(m, "/1.log", 1<<30)
	must(tb, err)
	return b
}

// FuzzOpenLog opens arbitrary bytes as a log: a typed error, or a log whose
// records can all be read or say that they are damaged, and that opens again the same.
func FuzzOpenLog(f *testing.F) {
	good := makeLog(f, 6)
	f.Add(good)
	f.Add(good[:len(good)-100])
	f.Add(good[:logHeaderSize])
	f.Add([]byte("CAIRNPRE"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		for i := 0; i+sectorSize <= len(p); i += sectorSize {
			if i == 0 || bytes.HasPrefix(p[i:], recordMagic[:]) {
				repair(p[i : i+sectorSize])
			}
		}
		m := vfs.NewMem()
		file, err := m.OpenFile("/1.log", os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		if len(p) > 0 {
			_, err = file.WriteAt(p, 0)
			must(t, err)
		}
		must(t, file.Close())
		l, x, _, err := openLog(m, "/1.log", fuzzID, 1, 16*bs, &spaceGuard{})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		n := 0
		x.saved(func(b int64, c uint32) bool {
			r, lerr := l.load(c, b, false)
			r.free()
			if lerr != nil && !errors.Is(lerr, ErrDamaged) {
				t.Fatalf("untyped error %v", lerr)
			}
			n++
			return true
		})
		end := l.size()
		must(t, l.f.Close())
		l, x, _, err = openLog(m, "/1.log", fuzzID, 1, 16*bs, &spaceGuard{})
		must(t, err)
		x.saved(func(int64, uint32) bool { n--; return true })
		if n != 0 || l.size() != end {
			t.Fatalf("the log changed by being opened: %d records, end %d and %d", n, end, l.size())
		}
	})
}

// Every prefix of a log opens to a prefix of its records.
func TestLogPrefixes(t *testing.T) {
	whole := makeLog(t, 12)
	last := -1
	for n := logHeaderSize; n <= len(whole); n += 100 {
		m := vfs.NewMem()
		must(t, vfs.WriteFile(m, "/1.log", whole[:n], 0o600))
		l, x, broken, err := openLog(m, "/1.log", fuzzID, 1, 16*bs, &spaceGuard{})
		if err != nil || broken != "" {
			t.Fatalf("prefix of %d bytes: %v, %q", n, err, broken)
		}
		count := 0
		x.saved(func(b int64, c uint32) bool {
			if b != int64(count) {
				t.Fatalf("prefix of %d bytes: block %d, want %d", n, b, count)
			}
			r, lerr := l.load(c, b, false)
			must(t, lerr)
			r.free()
			count++
			return true
		})
		if count < last {
			t.Fatalf("prefix of %d bytes has %d records, a shorter one %d", n, count, last)
		}
		last = count
	}
	if last < 11 {
		t.Fatalf("only %d records", last)
	}
}
