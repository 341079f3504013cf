package serve_test

import (
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// A sparse volume of 4 TiB is created, written, snapshotted and walked within
// the memory that the data plane may have: 64 MiB and 4 MiB for each TiB.
func TestMemoryOfHugeVolume(t *testing.T) {
	if testing.Short() {
		t.Skip("walks 4 TiB")
	}
	const size, budget = 4 << 40, 64*mib + 4*4*mib
	v := startVictim(t, filepath.Dir(options(t).State))
	defer v.kill()
	vol, err := v.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: size})
	if err != nil {
		needs.Missing(t, "a sparse file of 4 TiB is not possible here: %v", err)
	}
	c := dial(t, vol.URI)
	for i := range int64(200) {
		write(t, c, []byte{1}, i*(size/200))
	}
	ss, err := v.CreateSnapshots(t.Context(), serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"b1"}, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(200) {
		write(t, c, []byte{2}, i*(size/200)+size/400)
	}
	for _, uri := range []string{ss[0].URI, vol.URI} {
		for _, name := range []string{nbd.ContextAllocation, nbd.ContextDirtyBitmap + "b1"} {
			mc := dial(t, uri, name)
			es, mapErr := mc.Map(t.Context(), name, 0, size)
			if mapErr != nil || es[len(es)-1].End() != size {
				t.Fatalf("map of %s: %d extents, %v", uri, len(es), mapErr)
			}
			t.Logf("%s %s: %d extents", uri, name, len(es))
			closeClient(t, mc)
		}
	}
	st, err := v.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resident %d MiB, heap %d MiB", st.ResidentBytes/mib, st.HeapBytes/mib)
	if st.ResidentBytes > budget {
		t.Errorf("%d MiB resident, the budget is %d", st.ResidentBytes/mib, int64(budget)/mib)
	}
}
