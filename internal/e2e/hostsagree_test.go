package e2e

import (
	"bytes"
	"maps"
	"net/http"
	"os"
	"slices"

	"github.com/cairnbackup/cairn/agent"
)

// agree compares the catalog with the stores, what the backups hold with what was
// written, and what quotas count with what is there.
func (c *cluster) agree() {
	t := c.t
	for _, n := range c.nodes {
		if r, err := n.control.RebuildCatalog(t.Context()); err != nil || r.Found != 0 {
			t.Errorf("%s found backups that the catalog lacks: %+v, %v", n.name, r, err)
		}
	}
	all, err := c.nodes[2].control.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := c.stored()
	available := map[string]bool{}
	var backupSize float64
	for _, b := range all {
		backupSize += float64((b.Size + 1<<30 - 1) >> 30)
		if b.Status == agent.BackupAvailable {
			available[b.ID] = true
		} else if b.Status != agent.BackupError || b.Undecided {
			t.Errorf("it is not settled: %+v", b)
		}
	}
	if !maps.Equal(stored, available) {
		t.Errorf("the stores have\n%v\nand the catalog has\n%v", slices.Sorted(maps.Keys(stored)), slices.Sorted(maps.Keys(available)))
	}
	for id := range available {
		c.same(id)
	}
	var volumes, size float64
	for _, n := range c.nodes {
		l, err := n.data.Volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range l {
			volumes++
			size += float64(v.Size >> 30)
		}
	}
	for _, n := range c.nodes {
		a := n.asked(http.StatusOK, "admin", http.MethodGet, "os-quota-sets/"+all[0].Project+"?usage=True", nil)
		for what, want := range map[string]float64{"volumes": volumes, "gigabytes": size, "snapshots": 0, "backups": float64(len(all)), "backup_gigabytes": backupSize} {
			if got := a.at("quota_set", what, "in_use"); got != want {
				t.Errorf("%s counts %v %s, and there are %v", n.name, got, what, want)
			}
		}
	}
	if _, err := c.nodes[0].control.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// same compares what a backup restores with what its volume held.
func (c *cluster) same(id string) {
	t := c.t
	t.Helper()
	n := c.nodes[2]
	file := n.path("restored.img")
	n.restore(id, file)
	defer os.Remove(file)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, ok := c.contents[id]
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !ok || !bytes.Equal(got, want) {
		t.Errorf("backup %s differs from what was backed up (known: %v): %v", id, ok, err)
	}
}
