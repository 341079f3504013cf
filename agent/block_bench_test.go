package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// BenchmarkBlockList lists 1,000 backups of a project in full, over HTTP and out of the
// catalog, half of which belong to it: it is to take far less than 100 ms.
func BenchmarkBlockList(b *testing.B) {
	r := listRig(b, func(n int, rec *Backup) {
		rec.Metadata, rec.VolumeNotes = map[string]string{"ticket": strconv.Itoa(n)}, json.RawMessage(`{"name":"disk","metadata":{"role":"database"}}`)
	})
	benchmarkPage(b, r, "backups/detail", 1000)
}

// BenchmarkBlockLargeNotes lists 1,000 backups of a project, each with as much metadata as
// it may have, and its volume with as many notes: what is not shown is not to be read.
func BenchmarkBlockLargeNotes(b *testing.B) {
	r := listRig(b, func(n int, rec *Backup) {
		notes, err := json.Marshal(map[string]any{"metadata": pairs(120)})
		if err != nil {
			b.Fatal(err)
		}
		rec.VolumeNotes, rec.Metadata = notes, map[string]string{}
		for k, v := range pairs(120) {
			rec.Metadata[k] = fmt.Sprint(v)
		}
		rec.Metadata["ticket"] = strconv.Itoa(n)
	})
	for _, path := range []string{"backups?limit=50", "backups/detail?limit=50", "backups/detail?limit=50&offset=900", "backups", "backups/detail"} {
		want := 50
		if !strings.Contains(path, "limit") {
			want = 1000
		}
		b.Run(path, func(b *testing.B) { benchmarkPage(b, r, path, want) })
	}
}

func benchmarkPage(b *testing.B, r *rig, path string, want int) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		got := r.call(http.StatusOK, ann, http.MethodGet, path, nil)
		if l, ok := got["backups"].([]any); !ok || len(l) != want {
			b.Fatalf("%d backups", len(l))
		}
	}
}

// listRig has 1,000 backups in each of two projects, after change.
func listRig(b *testing.B, change func(n int, rec *Backup)) *rig {
	b.Helper()
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
		}
		change(n, &rec)
		if err = cat.PutBackup(b.Context(), rec); err != nil {
			b.Fatal(err)
		}
	}
	if err = cat.Close(); err != nil {
		b.Fatal(err)
	}
	r.served = true
	r.startAgent()
	return r
}
