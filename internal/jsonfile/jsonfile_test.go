package jsonfile

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

type thing struct {
	Name  string            `json:"name"`
	Size  int64             `json:"size"`
	Notes map[string]string `json:"notes,omitempty"`
}

var format = Format{"cairn-thing", 3}

func TestEveryThingComesBack(t *testing.T) {
	fsys := vfs.NewMem()
	rapid.Check(t, func(t *rapid.T) {
		want := thing{rapid.String().Draw(t, "name"), rapid.Int64().Draw(t, "size"), rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "notes")}
		if err := format.Write(fsys, "x", want); err != nil {
			t.Fatal(err)
		}
		var got thing
		if err := format.Read(fsys, "x", &got); err != nil {
			t.Fatal(err)
		}
		a, _ := format.Encode(want)
		b, _ := format.Encode(got)
		if !bytes.Equal(a, b) {
			t.Fatalf("%s came back as %s", a, b)
		}
	})
}

func TestDamageIsNoticed(t *testing.T) {
	data, err := format.Encode(thing{Name: "disk", Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		for _, flip := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(data)
			bad[i] ^= flip
			var got thing
			if err := format.Decode(bad, &got); err == nil && got.Name+string(rune(got.Size)) != "disk"+string(rune(4096)) {
				t.Errorf("byte %d changed by %#x: read as %+v", i, flip, got)
			}
		}
	}
	for n := range len(data) - 2 {
		if err := format.Decode(data[:n], &thing{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	later, err := Format{"cairn-thing", 4}.Encode(thing{})
	if err != nil {
		t.Fatal(err)
	}
	if err = format.Decode(later, &thing{}); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "use the release") {
		t.Errorf("a later version: %v", err)
	}
	other, err := Format{"cairn-other", 3}.Encode(thing{})
	if err != nil {
		t.Fatal(err)
	}
	if err = format.Decode(other, &thing{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("another format: %v", err)
	}
	if _, err = format.Encode(thing{Name: strings.Repeat("x", limit)}); err == nil {
		t.Error("more than the limit was encoded")
	}
}

func FuzzDecode(f *testing.F) {
	data, err := format.Encode(thing{Name: "disk", Size: 4096, Notes: map[string]string{"a": "<b>"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var got thing
		if format.Decode(p, &got) != nil {
			return
		}
		again, err := format.Encode(got)
		if err != nil {
			t.Fatal(err)
		}
		var same thing
		if err := format.Decode(again, &same); err != nil {
			t.Fatalf("what was read cannot be written and read again: %v", err)
		}
	})
}
