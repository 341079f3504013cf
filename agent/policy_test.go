package agent

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// TestPolicyOfSilentStores: stores that do not answer are waited for once behind a
// backup, however many backups go by its policy, and not at all when the agent stops.
func TestPolicyOfSilentStores(t *testing.T) {
	r := testRig(t)
	r.volume("web", 1<<20)
	for range 4 {
		r.backup(CreateBackup{Volume: "web"})
	}
	if err := r.agent.SetPolicy(t.Context(), "web", Keep{Last: 1}); err != nil {
		t.Fatal(err)
	}
	var silent atomic.Int64
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
			if c.Op == "put" && strings.HasPrefix(c.Name, "deleted/") {
				silent.Add(1)
				return memstore.Down
			}
			return memstore.None
		}})
	}
	r.backup(CreateBackup{Volume: "web"})
	states := map[BackupStatus]int{}
	l, err := r.agent.Backups(t.Context())
	for _, b := range l {
		states[b.Status]++
	}
	if err != nil || states[BackupDeleting] != 1 || states[BackupAvailable] != 4 || silent.Load() == 0 {
		t.Errorf("%v after %d refusals, %v", states, silent.Load(), err)
	}
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{})
	}
	r.backup(CreateBackup{Volume: "web"})
	r.until("the policy", func() bool {
		l, lerr := r.agent.Backups(t.Context())
		return lerr == nil && len(l) == 1
	})
}

// TestPolicyOfStoppingAgent: nothing is deleted any more.
func TestPolicyOfStoppingAgent(t *testing.T) {
	s := bareServer(t)
	err := s.cat.SetSetting(t.Context(), policyKey("v"), `{"last": 1}`)
	for _, id := range []string{"a", "b", "c"} {
		if err == nil {
			err = s.cat.PutBackup(t.Context(), Backup{ID: id, VolumeID: "v", Status: BackupAvailable})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	s.applyPolicy(t.Context(), "v", s.log, func() bool { return true }) // without stores it could not
	if l, err := s.cat.Backups(t.Context()); err != nil || len(l) != 3 {
		t.Errorf("%+v, %v", l, err)
	}
}
