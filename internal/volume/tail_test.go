package volume

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestTail compares a file and its tail with one slice, with a disk that is full at times.
func TestTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := vfs.NewMem()
		f, err := m.OpenFile("/log", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		x := tail{limit: rapid.SampledFrom([]int{0, 100, 1000}).Draw(t, "limit")}
		want := append([]byte(nil), "its header"...)
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		full := false
		m.FailOn(func(op, _ string) error {
			if full && op == "write" {
				return syscall.ENOSPC
			}
			return nil
		})
		t.Repeat(map[string]func(*rapid.T){
			"full": func(t *rapid.T) { full = rapid.Bool().Draw(t, "full") },
			"append": func(t *rapid.T) {
				record := bytes.Repeat([]byte{byte(len(want))}, rapid.IntRange(1, 1200).Draw(t, "n"))
				err := x.append(f, record, int64(len(want)))
				if err == nil {
					want = append(want, record...)
				} else if !full {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				off := rapid.IntRange(0, len(want)-1).Draw(t, "off")
				p := make([]byte, rapid.IntRange(1, len(want)-off).Draw(t, "n"))
				n := x.readAt(p, int64(off))
				if _, err := f.ReadAt(p[:n], int64(off)); n > 0 && err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, want[off:off+len(p)]) {
					t.Fatalf("%d bytes at %d of %d, of which %d are in the file, are others", len(p), off, len(want), n)
				}
				if len(x.buf) > x.limit {
					t.Fatalf("%d bytes in memory, at most %d", len(x.buf), x.limit)
				}
			},
		})
	})
}
