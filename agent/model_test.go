package agent

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/nbd"
)

var (
	modelRounds = flag.Int("model.rounds", 2, "rounds of the model test")
	modelSteps  = flag.Int("model.steps", 40, "steps of each round")
	modelSeed   = flag.Uint64("model.seed", 0, "first seed of the model test; 0 = a random one")
)

// model is a volume beside what it must hold, and so with all that was made
// of it.
type model struct {
	*rig
	rand    *rand.Rand
	vol     Volume
	shadow  []byte
	snaps   map[string][]byte // by name
	backups map[string]Backup // by ID
	content map[string][]byte // of backups
	count   int
}

// TestModel does random things to a volume, its snapshots, its backups, the
// agent and the data plane, and checks every backup against a shadow copy.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	r := testRig(t)
	for round := range *modelRounds {
		t.Logf("-model.seed=%d", seed)
		m := &model{
			rig: r, rand: rand.New(rand.NewPCG(seed, 1)), shadow: make([]byte, 3<<20+512),
			snaps: map[string][]byte{}, backups: map[string]Backup{}, content: map[string][]byte{},
		}
		m.vol = r.volume(fmt.Sprint("model", round), int64(len(m.shadow)))
		for range *modelSteps {
			m.step()
		}
		for id, b := range m.backups {
			m.same(b, m.content[id])
		}
		m.equal("the volume", m.read(m.vol.URI), m.shadow)
		m.idle(m.vol.ID)
		seed++
	}
}

func (m *model) step() {
	m.Helper()
	for _, s := range []struct {
		weight int
		do     func()
	}{
		{30, m.change},
		{25, m.backUp},
		{6, m.failBackup},
		{6, m.cancelBackup},
		{5, m.deleteBackup},
		{5, m.snapshot},
		{4, m.snapshotBackup},
		{3, m.revert},
		{3, m.deleteSnapshot},
		{4, m.restore},
		{2, m.extend},
		{2, m.restartAgent},
		{2, m.restartServe},
		{2, m.dropCheckpoint},
		{3, m.checkBackup},
	} {
		if m.rand.IntN(100) < s.weight {
			s.do()
		}
	}
}

func (m *model) span() (off, n int64) {
	off = m.rand.Int64N(int64(len(m.shadow)))
	return off, min(int64(len(m.shadow))-off, 1+m.rand.Int64N(200_000))
}

func (m *model) change() {
	m.write(m.vol.URI, func(c *nbd.Client) error {
		for range 1 + m.rand.IntN(4) {
			off, n := m.span()
			if m.rand.IntN(4) == 0 {
				clear(m.shadow[off : off+n])
				if err := c.Zero(context.Background(), off, n, m.rand.IntN(2) == 0); err != nil {
					return err
				}
				continue
			}
			p := noise(int(n))
			copy(m.shadow[off:], p)
			if err := c.WriteAt(context.Background(), p, off, false); err != nil {
				return err
			}
		}
		return nil
	})
	m.idle(m.vol.ID)
}

func (m *model) made(b Backup, content []byte) {
	m.Helper()
	m.same(b, content)
	m.backups[b.ID], m.content[b.ID] = b, slices.Clone(content)
}

func (m *model) request() CreateBackup {
	req := CreateBackup{Volume: m.vol.ID}
	switch m.rand.IntN(4) {
	case 0:
	case 1:
		req.Incremental = len(m.backups) > 0
	default:
		req.Auto = true
	}
	return req
}

func (m *model) backUp() { m.made(m.backup(m.request()), m.shadow) }

func (m *model) snapshotBackup() {
	name, content := m.anySnapshot()
	if name == "" {
		return
	}
	req := m.request()
	req.Snapshot = name
	m.made(m.backup(req), content)
}

// failBackup lets the stores fail at a random call.
func (m *model) failBackup() {
	for _, s := range m.stores {
		after := s.Calls() + m.rand.Int64N(30)
		s.SetFaults(memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
			if c.Op == "put" && c.N >= after {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	m.ended(m.wait(m.agent.CreateBackup(context.Background(), m.request())), func() {
		for _, s := range m.stores {
			s.SetFaults(memstore.Faults{})
		}
	})
}

// cancelBackup cancels at a random moment.
func (m *model) cancelBackup() {
	j, err := m.agent.CreateBackup(context.Background(), m.request())
	if err != nil {
		m.Fatal(err)
	}
	for range m.rand.IntN(2000) {
		if x, err := m.agent.Job(context.Background(), j.ID); err != nil || x.Progress.Phase == "committing" || x.Progress.Read > 0 {
			break
		}
	}
	// It may have ended, which is a refusal.
	_, _ = m.agent.CancelJob(context.Background(), j.ID)
	m.ended(m.wait(j, nil), func() {})
}

// ended takes a backup that was disturbed for what it says it is.
func (m *model) ended(j Job, mend func()) {
	m.Helper()
	mend()
	b, err := m.agent.Backup(context.Background(), j.Backup)
	if err != nil {
		m.Fatal(err)
	}
	for b.Undecided {
		if b, err = m.agent.Backup(context.Background(), j.Backup); err != nil {
			m.Fatal(err)
		}
	}
	if b.Status == BackupAvailable {
		m.made(b, m.shadow)
	} else if b.Status != BackupError || b.FailReason == "" {
		m.Fatalf("a disturbed backup is %+v", b)
	}
}

func (m *model) anyBackup() (Backup, []byte) {
	ids := make([]string, 0, len(m.backups))
	for id := range m.backups {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return Backup{}, nil
	}
	slices.Sort(ids)
	id := ids[m.rand.IntN(len(ids))]
	return m.backups[id], m.content[id]
}

func (m *model) checkBackup() {
	if b, content := m.anyBackup(); b.ID != "" {
		m.same(b, content)
	}
}

func (m *model) deleteBackup() {
	b, _ := m.anyBackup()
	if b.ID == "" {
		return
	}
	if err := m.agent.DeleteBackup(context.Background(), b.ID); err != nil {
		m.Fatal(err)
	}
	delete(m.backups, b.ID)
	delete(m.content, b.ID)
}

func (m *model) restore() {
	b, content := m.anyBackup()
	if b.ID == "" || int(b.Size) > len(m.shadow) {
		return
	}
	m.idle(m.vol.ID)
	j := m.wait(m.agent.Restore(context.Background(), Restore{Backup: b.ID, Volume: m.vol.ID}))
	if j.State != JobSucceeded {
		m.Fatalf("restore: %+v", j)
	}
	copy(m.shadow, content)
	m.idle(m.vol.ID)
	m.equal("the restored volume", m.read(m.vol.URI), m.shadow)
	m.idle(m.vol.ID)
}

func (m *model) anySnapshot() (string, []byte) {
	names := make([]string, 0, len(m.snaps))
	for n := range m.snaps {
		names = append(names, n)
	}
	if len(names) == 0 {
		return "", nil
	}
	slices.Sort(names)
	name := names[m.rand.IntN(len(names))]
	return name, m.snaps[name]
}

func (m *model) snapshot() {
	m.count++
	name := fmt.Sprint("snap", m.vol.Name, "-", m.count)
	if _, err := m.agent.CreateSnapshots(context.Background(), CreateSnapshots{Volumes: []string{m.vol.ID}, Name: name}); err != nil {
		m.Fatal(err)
	}
	m.snaps[name] = slices.Clone(m.shadow)
}

func (m *model) deleteSnapshot() {
	if name, _ := m.anySnapshot(); name != "" {
		if err := m.agent.DeleteSnapshot(context.Background(), name); err != nil {
			m.Fatal(err)
		}
		delete(m.snaps, name)
	}
}

func (m *model) revert() {
	name, content := m.anySnapshot()
	if name == "" {
		return
	}
	err := m.agent.RevertVolume(context.Background(), name)
	if len(content) != len(m.shadow) {
		if err == nil { // whatever a revert across a growth does, the rest is known
			v := m.read(m.vol.URI)
			m.equal("the reverted part", v[:len(content)], content)
			m.shadow = v
			m.idle(m.vol.ID)
		}
		return
	}
	if err != nil {
		m.Fatal(err)
	}
	copy(m.shadow, content)
}

func (m *model) extend() {
	n := m.rand.IntN(300_000) &^ 511
	v, err := m.agent.ExtendVolume(context.Background(), m.vol.ID, int64(len(m.shadow)+n+512))
	if err != nil {
		m.Fatal(err)
	}
	m.shadow = append(m.shadow, make([]byte, n+512)...)
	m.vol = v
}

func (m *model) restartAgent() {
	m.stopAgent()
	m.startAgent()
}

func (m *model) restartServe() {
	m.stopServe()
	m.startServe()
}

// dropCheckpoint lets the next incremental find another way.
func (m *model) dropCheckpoint() {
	v, err := m.serve.Volume(context.Background(), m.vol.ID)
	if err != nil {
		m.Fatal(err)
	}
	if len(v.Checkpoints) > 0 {
		// The agent may drop it just now, too.
		_ = m.serve.DropCheckpoint(context.Background(), m.vol.ID, v.Checkpoints[m.rand.IntN(len(v.Checkpoints))].Name)
	}
}
