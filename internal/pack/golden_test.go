package pack

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden holds the formats still: the container byte for byte, and the
// shards of a longer one by their digests in a list and by two whole headers.
func TestGolden(t *testing.T) {
	d := testDomain(t)
	container, _ := smallPack(t, d)
	golden(t, "container", container)

	var list bytes.Buffer
	for _, g := range []Geometry{{1, 0}, {2, 1}, {4, 2}} {
		c := testCoder(t, g)
		f := encode(t, c, bytesOf(10, g.Data*unit+unit+777))
		for i, b := range f.objects {
			tag := borrow(&c.headerTags)
			fmt.Fprintf(&list, "%s shard %d: %d bytes, %x, header %x\n", g, i, len(b), tag.tag(b, testPack, i, 0), b[:headerSize])
			c.headerTags.Put(tag)
		}
	}
	golden(t, "shards", list.Bytes())
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed: what is stored already would not be read", name)
	}
}
