package repository

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/cairnbackup/cairn/internal/chunk"
)

var updateForwarding = flag.Bool("update-forwarding", false, "write testdata/forwarding-v1.golden anew: only before format 1 was released")

// sampleForwarding has chunks of both kinds, in two packs.
func sampleForwarding() *forwarding {
	at := func(p byte, off, n uint32) chunk.Location {
		return chunk.Location{Pack: chunk.PackID{p, 1}, Offset: off, Length: n}
	}
	return &forwarding{old: chunk.PackID{1, 2, 3}, chunks: []movedChunk{
		{chunk.Data, chunk.ID{1}, at(9, 0, 100)},
		{chunk.Data, chunk.ID{1, 1}, at(7, 1<<20, chunk.MaxSealed)},
		{chunk.Node, chunk.ID{0, 5}, at(9, 100, chunk.MinSealed)},
	}}
}

const forwardingGolden = "testdata/forwarding-v1.golden"

// A forwarding of format 1 stays readable for ever, and is written the same.
func TestForwardingGolden(t *testing.T) {
	repo := ident{9}
	k, err := masterKey{1, 2, 3}.ring(repo)
	if err != nil {
		t.Fatal(err)
	}
	f := sampleForwarding()
	name := forwardName(f.old, ident{6})
	plain, err := f.encode(repo)
	if err != nil {
		t.Fatal(err)
	}
	object, err := k.sealForwardingWith(0, bytes.Repeat([]byte{5}, chacha20poly1305.NonceSizeX), name, plain)
	if err != nil {
		t.Fatal(err)
	}
	if *updateForwarding {
		text := name + "\n" + hex.EncodeToString(plain) + "\n" + hex.EncodeToString(object) + "\n"
		if err = os.WriteFile(forwardingGolden, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(forwardingGolden)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[0] != name || lines[1] != hex.EncodeToString(plain) || lines[2] != hex.EncodeToString(object) {
		t.Error("it is written differently")
	}
	stored, err := hex.DecodeString(lines[2])
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.openForwarding(repo, lines[0], stored)
	if err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestForwardingRefusals(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*forwarding)
	}{
		{"empty", func(f *forwarding) { f.chunks = nil }},
		{"too many", func(f *forwarding) { f.chunks = make([]movedChunk, maxForwarded+1) }},
		{"out of order", func(f *forwarding) { f.chunks[0], f.chunks[1] = f.chunks[1], f.chunks[0] }},
		{"twice", func(f *forwarding) { f.chunks[1] = f.chunks[0] }},
		{"table of contents", func(f *forwarding) { f.chunks[2].kind = chunk.Contents }},
		{"to itself", func(f *forwarding) { f.chunks[1].to.Pack = f.old }},
		{"chunk too long", func(f *forwarding) { f.chunks[1].to.Length = chunk.MaxSealed + 1 }},
		{"past the end", func(f *forwarding) { f.chunks[1].to.Offset = 1<<32 - 1 }},
	}
	for _, tt := range tests {
		f := sampleForwarding()
		tt.spoil(f)
		if _, err := f.encode(ident{9}); err == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
	if _, err := sampleForwarding().find(chunk.Node, chunk.ID{1}); err == nil {
		t.Error("a chunk is found under another kind")
	}
}

func FuzzForwarding(f *testing.F) {
	repo, old := ident{9}, sampleForwarding().old
	plain, err := sampleForwarding().encode(repo)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(plain[:forwardHead])
	f.Add(append(bytes.Clone(plain[:48]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	k := fuzzKeys(f)
	name := forwardName(old, ident{6})
	f.Fuzz(func(t *testing.T, plain []byte) {
		_, _ = k.openForwarding(repo, name, plain)
		got, err := decodeForwarding(repo, old, plain)
		if err != nil {
			return
		}
		again, err := got.encode(repo)
		if err != nil || !bytes.Equal(again, plain) {
			t.Fatalf("a forwarding does not survive decoding: %v", err)
		}
		for _, c := range got.chunks {
			if to, err := got.find(c.kind, c.id); err != nil || to != c.to {
				t.Fatalf("chunk %s is not found: %v", c.id, err)
			}
		}
	})
}
