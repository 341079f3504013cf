package serve

import (
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// How far a reader is can be told while its volume is being changed, for however long.
func TestReleaseWaitsForNobody(t *testing.T) {
	p := testPlane(t, vfs.OS())
	v, err := p.createVolume(t.Context(), CreateVolume{Name: "a", Size: 1 << 20})
	must(t, err)
	ss, err := p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"a"}, Temporary: true})
	must(t, err)
	e, err := p.find(v.ID)
	must(t, err)
	must(t, e.lock(t.Context()))
	must(t, p.releaseSnapshot(ss[0].ID, 1<<20))
	e.unlock()
}
