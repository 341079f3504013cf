package serve

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// The file of a socket is private from the moment bind makes it.
func TestSocketIsBornPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lc := net.ListenConfig{Control: private}
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v right after bind", st.Mode())
	}
}
