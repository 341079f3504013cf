package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

const attributesPath = "/state/vol/" + attributesFile

func TestAttributes(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true, Attributes: json.RawMessage(`{ "owner": "<a>" }`)})
	must(t, err)
	has := func(want string) {
		t.Helper()
		if got := LoadAttributes(o, "/state/vol", v.id); string(got) != want {
			t.Fatalf("attributes %s, want %s", got, want)
		}
	}
	has(`{"owner":"\u003ca\u003e"}`)
	snap(t, v, SnapshotOptions{}) // volume.json is replaced
	has(`{"owner":"\u003ca\u003e"}`)
	set := func(next, was, want string) error {
		t.Helper()
		var w json.RawMessage
		if was != "" {
			w = json.RawMessage(was)
		}
		got, setErr := SetAttributes(o, "/state/vol", v.id, json.RawMessage(next), w)
		if string(got) != want {
			t.Fatalf("set: attributes %s, want %s", got, want)
		}
		has(want)
		return setErr
	}
	must(t, set(`{"a":1}`, "", `{"a":1}`))
	must(t, set(`{"a":2}`, `{ "a" : 1 }`, `{"a":2}`))
	if err = set(`{"a":3}`, `{"a":1}`, `{"a":2}`); !errors.Is(err, ErrChanged) {
		t.Errorf("attributes that somebody has changed: %v", err)
	}
	if err = set(`{"a":3}`, `{}`, `{"a":2}`); !errors.Is(err, ErrChanged) {
		t.Errorf("attributes where none were expected: %v", err)
	}
	for _, bad := range []string{`[]`, `{`, `{"a":"` + strings.Repeat("x", 64<<10) + `"}`} {
		if err = set(bad, "", `{"a":2}`); !errors.Is(err, ErrInvalid) {
			t.Errorf("attributes %.10s: %v", bad, err)
		}
	}
	must(t, set(`{}`, `{"a":2}`, ""))
	if err = set(`{"a":4}`, `{"a":2}`, ""); !errors.Is(err, ErrChanged) {
		t.Errorf("attributes that were removed: %v", err)
	}
	must(t, set(`{"a":5}`, `{}`, `{"a":5}`))
	must(t, v.Close())
	must(t, set(`{"a":6}`, "", `{"a":6}`)) // also when it is not open
	must(t, Destroy(o, "/state/vol"))
	if _, err = SetAttributes(o, "/state/vol", v.id, json.RawMessage(`{"a":7}`), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attributes of a volume that is gone: %v", err)
	}
	if _, err = Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true, Attributes: json.RawMessage(`[]`)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a volume with a list for attributes: %v", err)
	}
}

// A volume without attributes has the files that it always had.
func TestNoAttributesNoFile(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true, Attributes: json.RawMessage("{}")})
	must(t, err)
	must(t, v.Close())
	if _, err := m.Stat(attributesPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", attributesPath, err)
	}
	if a := LoadAttributes(o, "/state/vol", v.id); a != nil {
		t.Errorf("attributes %s of nothing", a)
	}
}

// Whatever is wrong with the attributes, the volume opens, and what somebody may
// still want of them stays.
func TestBadAttributes(t *testing.T) {
	good, err := encodeAttributes(fuzzID, json.RawMessage(`{"a":1}`))
	must(t, err)
	other, err := encodeAttributes(uuid.New(), json.RawMessage(`{"a":1}`))
	must(t, err)
	for _, tt := range []struct {
		name    string
		file    []byte
		damaged bool
	}{
		{"empty", nil, true},
		{"cut off", good[:len(good)/2], true},
		{"no JSON", []byte("attributes"), true},
		{"another file", []byte(`{"format":"cairn-volume","version":1}`), true},
		{"no version", []byte(`{"format":"cairn-volume-attributes"}`), true},
		{"a bit is wrong", bytes.Replace(good, []byte(`"a":1`), []byte(`"a":3`), 1), true},
		{"nothing for attributes", []byte(`{"format":"cairn-volume-attributes","version":1,"id":"` + fuzzID.String() + `","crc":1}`), true},
		{"too large", bytes.Repeat([]byte(" "), attributesLimit+1), true},
		{"of a later release", []byte(`{"format":"cairn-volume-attributes","version":2}`), false},
		{"another volume's", other, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := vfs.NewMem()
			o := memOptions(m, newHost())
			v, err := Create(o, "/state/vol", Spec{ID: fuzzID, Name: "vol", Size: 4 * bs, Managed: true})
			must(t, err)
			must(t, v.Close())
			must(t, vfs.WriteFile(m, attributesPath, tt.file, 0o600))
			v, err = Open(o, "/state/vol")
			must(t, err)
			must(t, v.Close())
			if tt.damaged { // also without anybody having looked before
				now, err := SetAttributes(o, "/state/vol", fuzzID, json.RawMessage(`{"b":1}`), json.RawMessage("{}"))
				if err != nil || string(now) != `{"b":1}` {
					t.Errorf("set: %s, %v", now, err)
				}
				must(t, vfs.WriteFile(m, attributesPath, tt.file, 0o600))
			} else if _, err := SetAttributes(o, "/state/vol", fuzzID, json.RawMessage(`{"b":1}`), nil); !errors.Is(err, ErrForeign) {
				t.Errorf("they were replaced: %v", err)
			}
			if a := LoadAttributes(o, "/state/vol", fuzzID); a != nil {
				t.Errorf("shown: %s", a)
			}
			at := attributesPath
			if tt.damaged {
				at = "/state/vol/" + attributesAside
				if _, err := m.Stat(attributesPath); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the damaged file is still there: %v", err)
				}
			}
			if kept, err := vfs.ReadFile(m, at, 1<<20); err != nil || !bytes.Equal(kept, tt.file) {
				t.Errorf("kept at %s: %.80q, %v", at, kept, err)
			}
		})
	}
}

// Attributes that cannot be read now are not taken for none: they are not
// replaced, nor set aside.
func TestUnreadableAttributes(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true, Attributes: json.RawMessage(`{"a":1}`)})
	must(t, err)
	o.FS = noAttributes{m}
	if a := LoadAttributes(o, "/state/vol", v.id); a != nil {
		t.Errorf("read %s", a)
	}
	if _, err := SetAttributes(o, "/state/vol", v.id, json.RawMessage(`{"a":2}`), json.RawMessage("{}")); !errors.Is(err, syscall.EIO) {
		t.Errorf("set: %v", err)
	}
	o.FS = m
	if a := LoadAttributes(o, "/state/vol", v.id); string(a) != `{"a":1}` {
		t.Errorf("attributes %s", a)
	}
	must(t, v.Close())
}

// noAttributes does not open attributes.
type noAttributes struct{ vfs.FS }

func (u noAttributes) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if strings.HasSuffix(name, attributesFile) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EIO}
	}
	return u.FS.OpenFile(name, flag, perm)
}

// Attributes that could not be written are not there later.
func TestRefusedAttributes(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(m *vfs.Mem)
		want []string // in memory, if it is known; and on disk
	}{
		{"no space", func(m *vfs.Mem) { failOn(m, "write", attributesFile, syscall.ENOSPC) }, []string{`{"a":1}`}},
		{"no sync", func(m *vfs.Mem) { failOn(m, "sync", attributesFile, syscall.EIO) }, []string{`{"a":1}`}},
		{"no rename", func(m *vfs.Mem) { failOn(m, "rename", attributesFile, syscall.EIO) }, []string{`{"a":1}`}},
		{"no sync of the folder", func(m *vfs.Mem) { failSyncDir(m, 1) }, []string{`{"a":1}`}},
		{"nor when the old ones are put back", func(m *vfs.Mem) { failSyncDir(m, 2) }, []string{`{"a":1}`, `{"a":2}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := vfs.NewMem()
			o := memOptions(m, newHost())
			v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true, Attributes: json.RawMessage(`{"a":1}`)})
			must(t, err)
			tt.fail(m)
			now, err := SetAttributes(o, "/state/vol", v.id, json.RawMessage(`{"a":2}`), nil)
			m.FailOn(nil)
			if err == nil {
				t.Fatal("it did not fail")
			}
			must(t, v.Close())
			for seed := range uint64(20) {
				after := m.Crash(rand.New(rand.NewPCG(seed, 1)))
				o.FS = after
				a := LoadAttributes(o, "/state/vol", v.id)
				if !strings.Contains(strings.Join(tt.want, " "), string(a)) || a == nil {
					t.Errorf("attributes %s after a power failure, want %s", a, tt.want)
				}
			}
			if len(tt.want) == 1 && string(now) != tt.want[0] {
				t.Errorf("it says that they are %s", now)
			}
		})
	}
}

// TestAttributesPowerLoss turns the power off at every operation of a volume's
// creation and of changes of its attributes. A volume is not there without those
// it was made with, and what was confirmed is there.
func TestAttributesPowerLoss(t *testing.T) {
	for at := 1; ; at++ {
		m := vfs.NewMem()
		host := newHost()
		o := memOptions(m, host)
		id := uuid.New()
		var (
			mu        sync.Mutex
			after     *vfs.Mem
			ops       int
			confirmed = -1 // number of the attributes that were confirmed last; -1: not even the volume
			atCrash   int
		)
		must(t, vfs.MkdirAll(m, "/state", 0o700))
		m.OnOp(func(string, string) {
			mu.Lock()
			defer mu.Unlock()
			ops++
			if ops == at {
				after, atCrash = m.Crash(rand.New(rand.NewPCG(uint64(at), 3))), confirmed
			}
		})
		number := func(n int) json.RawMessage { return json.RawMessage(fmt.Sprintf(`{"n":%d}`, n)) }
		v, err := Create(o, "/state/vol", Spec{ID: id, Name: "vol", Size: 4 * bs, Managed: true, Attributes: number(0)})
		for n := 0; err == nil && n < 4; n++ {
			mu.Lock()
			confirmed = n
			mu.Unlock()
			_, err = SetAttributes(o, "/state/vol", id, number(n+1), number(n))
		}
		if v != nil {
			err = errors.Join(err, v.Close())
		}
		if after == nil {
			must(t, err)
		}
		if after == nil {
			if at < 20 {
				t.Fatalf("only %d operations", ops)
			}
			return
		}
		host.reboot()
		o.FS = after
		must(t, Sweep(o, "/state"))
		if v, err = Open(o, "/state/vol"); err != nil {
			if errors.Is(err, fs.ErrNotExist) && atCrash < 0 {
				continue
			}
			t.Fatalf("power lost at operation %d: %v", at, err)
		}
		must(t, v.Close())
		got := LoadAttributes(o, "/state/vol", id)
		if !bytes.Equal(got, number(max(atCrash, 0))) && !bytes.Equal(got, number(atCrash+1)) {
			t.Fatalf("power lost at operation %d, behind attributes %d: %s", at, atCrash, got)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	good, err := encodeAttributes(fuzzID, json.RawMessage(`{"a":["\u003c",1.50]}`))
	must(f, err)
	f.Add(good)
	none, err := encodeAttributes(fuzzID, nil)
	must(f, err)
	f.Add(none)
	f.Add([]byte(`{"format":"cairn-volume-attributes","version":2}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		a, err := decodeAttributes(p, fuzzID)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := encodeAttributes(fuzzID, a)
		must(t, err)
		back, err := decodeAttributes(again, fuzzID)
		if err != nil || !bytes.Equal(a, back) {
			t.Fatalf("%s is not %s: %v", back, a, err)
		}
	})
}
