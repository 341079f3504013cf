package nbd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestInFolios writes where nothing, all, and some is cached.
func TestInFolios(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	if err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &unix.Cachestat_t{}, 0); err != nil {
		needs.Missing(t, "needs a kernel that says what is cached, Linux 6.5: %v", err)
	}
	const size = 1 << 20
	if err = f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	ends := func(off int64, n int) (l []int64) {
		err := inFolios(f, off, n, func(at int64, m int) error {
			if len(l) > 0 && at != l[len(l)-1] || len(l) == 0 && at != off || m < 1 {
				t.Fatalf("%d bytes at %d behind the parts that end at %d", m, at, l)
			}
			l = append(l, at+int64(m))
			_, err := f.WriteAt(make([]byte, m), at)
			return err
		})
		if err != nil || l[len(l)-1] != off+int64(n) {
			t.Fatalf("parts that end at %d of %d bytes at %d: %v", l, n, off, err)
		}
		return l
	}
	for _, tt := range []struct {
		what string
		off  int64
		n    int
		ends []int64
	}{
		{"a folio that is missing", folioSize, folioSize, []int64{2 * folioSize}},
		{"from within one that is missing", 3*folioSize - 512, 2 * folioSize, []int64{3 * folioSize, 4 * folioSize, 5*folioSize - 512}},
		{"the same, which is there", 3*folioSize - 512, 2 * folioSize, []int64{5*folioSize - 512}},
		{"of which the end is missing", 4 * folioSize, 2*folioSize + 1, []int64{5 * folioSize, 6 * folioSize, 6*folioSize + 1}},
	} {
		if got := ends(tt.off, tt.n); !slices.Equal(got, tt.ends) {
			t.Errorf("%s: %d bytes at %d come in parts that end at %d, not %d", tt.what, tt.n, tt.off, got, tt.ends)
		}
	}
	calls := 0
	if err := inFolios(f, 8*folioSize, 8*folioSize, func(int64, int) error { calls++; return unix.ENOSPC }); !errors.Is(err, unix.ENOSPC) || calls != 1 {
		t.Errorf("a write that fails: %v, after %d calls", err, calls)
	}
}
