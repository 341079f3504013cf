package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// BenchmarkBlockList lists 1,000 backups of a project in full, over HTTP and out of the
// catalog, half of which belong to it: it is to take far less than 100 ms.
func BenchmarkBlockList(b *testing.B) {
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // paths of sockets are short
	if err != nil {
		b.Fatal(err)
	}
	r := newRig(b, dir)
	b.Cleanup(func() {
		r.close()
		if rerr := os.RemoveAll(dir); rerr != nil {
			b.Error(rerr)
		}
	})
	r.stopAgent()
	cat, err := catalog.Open(b.Context(), filepath.Join(dir, "agent", "catalog.db"))
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now().UTC().Add(-time.Hour)
	for n := range 2000 {
		rec := Backup{
			ID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", n), Name: fmt.Sprint("backup ", n), Project: "ab"[n%2 : n%2+1], Status: catalog.Available,
			VolumeID: "00000000-0000-4000-8000-000000000001", Size: 10 << 30, Created: began.Add(time.Duration(n) * time.Second),
			Metadata: map[string]string{"ticket": strconv.Itoa(n)}, VolumeNotes: json.RawMessage(`{"name":"disk","metadata":{"role":"database"}}`),
		}
		if err = cat.PutBackup(b.Context(), rec); err != nil {
			b.Fatal(err)
		}
	}
	if err = cat.Close(); err != nil {
		b.Fatal(err)
	}
	r.served = true
	r.startAgent()
	for b.Loop() {
		got := r.call(http.StatusOK, ann, http.MethodGet, "backups/detail", nil)
		if l, ok := got["backups"].([]any); !ok || len(l) != 1000 {
			b.Fatalf("%d backups", len(l))
		}
	}
}
