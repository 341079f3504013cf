package serve

import (
	"os"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/nbd"
)

func TestIdentity(t *testing.T) {
	me, them := os.Getpid(), os.Getppid()
	for _, tt := range []struct {
		name string
		a, b nbd.Peer
		same bool
	}{
		{"one process", nbd.Peer{PID: me}, nbd.Peer{PID: me}, true},
		{"two processes", nbd.Peer{PID: me}, nbd.Peer{PID: them}, false},
		{"processes that cannot be seen", nbd.Peer{PID: 0}, nbd.Peer{PID: 0}, false},
		{"one certificate", nbd.Peer{PID: -1, Addr: "10.0.0.1:1", CommonName: "a"}, nbd.Peer{PID: -1, Addr: "10.0.0.1:2", CommonName: "a"}, true},
		{"two certificates of one host", nbd.Peer{PID: -1, Addr: "10.0.0.1:1", CommonName: "a"}, nbd.Peer{PID: -1, Addr: "10.0.0.1:1", CommonName: "b"}, false},
		{"one certificate of two hosts", nbd.Peer{PID: -1, Addr: "10.0.0.1:1", CommonName: "a"}, nbd.Peer{PID: -1, Addr: "10.0.0.2:1", CommonName: "a"}, false},
		{"a name like another's address", nbd.Peer{PID: -1, Addr: "10.0.0.1:1", CommonName: "a@10.0.0.2"}, nbd.Peer{PID: -1, Addr: "10.0.0.2:1", CommonName: "a"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, holder := identity(tt.a, 1)
			b, _ := identity(tt.b, 2)
			if (a == b) != tt.same || a == "" || holder == "" {
				t.Errorf("identities %q (%s) and %q, same should be %v", a, holder, b, tt.same)
			}
		})
	}
	if _, holder := identity(nbd.Peer{PID: me}, 1); !strings.HasPrefix(holder, "process ") || !strings.Contains(holder, "(") {
		t.Errorf("this process is called %q", holder)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "A-1.b_c": true, strings.Repeat("x", 63): true,
		"": false, ".": false, "..": false, ".a": false, "-a": false, "a/b": false, "../a": false, "a@b": false, "a b": false, "ä": false,
		"a\n": false, "a\x00": false, strings.Repeat("x", 64): false,
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8": false,
	} {
		if err := checkFreeName("volume", name); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestDirtyExtents(t *testing.T) {
	const unit = blockmap.DefaultBlockSize
	b := blockmap.NewBitmap(10)
	b.Set(2, 3)
	b.Set(9, 1)
	ext := func(off, n int64, s blockmap.State) blockmap.Extent {
		return blockmap.Extent{Offset: off, Length: n, State: s}
	}
	for _, tt := range []struct {
		name   string
		off, n int64
		want   []blockmap.Extent
	}{
		{"all", 0, 10 * unit, []blockmap.Extent{ext(0, 2*unit, 0), ext(2*unit, 3*unit, 1), ext(5*unit, 4*unit, 0), ext(9*unit, unit, 1)}},
		{"inside a block", 2*unit + 7, 100, []blockmap.Extent{ext(2*unit+7, 100, 1)}},
		{"across an edge", 5*unit - 1, 2, []blockmap.Extent{ext(5*unit-1, 1, 1), ext(5*unit, 1, 0)}},
		{"beyond the bitmap", 10*unit - 1, unit, []blockmap.Extent{ext(10*unit-1, unit, 1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := dirtyExtents(b, tt.off, tt.n)
			if len(got) != len(tt.want) {
				t.Fatalf("extents %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("extents %v, want %v", got, tt.want)
				}
			}
		})
	}
	// One answer is bounded, and still begins where it was asked to.
	if got := dirtyExtents(blockmap.NewBitmap(1<<24), 5*unit, 1<<56); len(got) != 1 || got[0].Offset != 5*unit || got[0].Length < 1<<30 {
		t.Errorf("a huge request: %v", got)
	}
}
