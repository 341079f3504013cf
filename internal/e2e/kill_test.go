package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
)

// volumeSize keeps a round short; three lanes of whole sectors divide it.
const volumeSize = 12 << 20

// rounds is how many rounds a test runs: CAIRN_ROUNDS, or what is said here.
func rounds(t *testing.T, usual int) int {
	t.Helper()
	if s := os.Getenv("CAIRN_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("CAIRN_ROUNDS=%q is not a number", s)
		}
		return n
	}
	return usual
}

// seed is CAIRN_SEED, or random; it is printed.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	s := rand.Uint64()
	if v := os.Getenv("CAIRN_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED=%q is not a number", v)
		}
	}
	t.Logf("CAIRN_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// TestKill kills the data plane and the agent at random points of backups,
// restores and snapshots, while a guest writes. What must hold, each round:
// the guest keeps what was acknowledged, and notices nothing when only the
// agent dies; every backup listed as available restores exactly to what the
// volume held when it was asked for.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	c := newCampaign(t)
	n := rounds(t, 200)
	for i := range n {
		if err := c.round(i); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	// Now in peace: an incremental, and every backup.
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	writes, flushes, lost := 0, 0, 0
	for _, l := range c.guest.lanes {
		writes, flushes, lost = writes+l.writes, flushes+l.flushes, lost+l.lostConns
	}
	t.Logf("%d rounds: %d writes, %d flushes, %d connections lost; %d backups made, %d verified", n, writes, flushes, lost, c.made, c.verified)
	if c.made < n/10 || c.verified < n/10 {
		t.Errorf("only %d backups in %d rounds: the test tests too little", c.made, n)
	}
}

// campaign is the state of TestKill.
type campaign struct {
	*host
	rng    *rand.Rand
	guest  *guest
	ended  chan error        // what the guest's run returned
	expect map[string][]byte // by backup ID: what it must hold
	made   int
	// verified counts restores that were compared.
	verified int
}

func newCampaign(t *testing.T) *campaign {
	t.Helper()
	c := &campaign{host: newHost(t), rng: seed(t), expect: map[string][]byte{}, ended: make(chan error, 1)}
	v, err := c.control.CreateVolume(t.Context(), agent.CreateVolume{Name: "disk", Size: volumeSize})
	if err != nil {
		t.Fatal(err)
	}
	c.guest = newGuest(v.URI, volumeSize, 3, c.rng, &c.kills)
	ctx, stop := context.WithCancel(context.Background())
	go func() { c.ended <- c.guest.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err, open := <-c.ended; open && err != nil {
			t.Errorf("guest: %v", err)
		}
	})
	return c
}

// round starts an operation, kills something in its middle, starts it again,
// and checks what is there.
func (c *campaign) round(i int) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	image, job, err := c.operate(ctx)
	if err != nil {
		return err
	}
	// Often in the middle of the backup, often a little after its end.
	wait := time.Duration(c.rng.Int64N(int64(150 * time.Millisecond)))
	if c.rng.IntN(2) == 0 {
		if _, err := c.control.WaitJob(ctx, job.ID, nil); err != nil {
			return err
		}
		wait /= 5
	}
	select {
	case err := <-c.ended:
		c.ended <- nil
		return fmt.Errorf("guest stopped: %w", err)
	case <-time.After(wait):
	}
	switch c.rng.IntN(5) {
	case 0, 1:
		c.kill(c.agent)
		c.startAgent()
	case 2, 3:
		c.crashServe()
	default:
		c.kill(c.agent)
		c.crashServe()
		c.startAgent()
	}
	if err := c.settle(ctx, job, image); err != nil {
		return err
	}
	return c.verify(ctx, i)
}

// crashServe kills the data plane and starts it again.
func (c *campaign) crashServe() {
	c.kills.Add(1)
	c.kill(c.serve)
	c.startServe()
	c.kills.Add(1)
}

// operate starts one backup with the guest paused until the snapshot is taken,
// so that the backup's content is known.
func (c *campaign) operate(ctx context.Context) (image []byte, job agent.Job, err error) {
	image = c.guest.pause()
	defer c.guest.resume()
	before, err := c.data.Snapshots(ctx, "disk")
	if err != nil {
		return nil, job, err
	}
	req := agent.CreateBackup{Volume: "disk", Force: true, Auto: true}
	if c.rng.IntN(6) == 0 {
		req.Auto = false
	}
	job, err = c.control.CreateBackup(ctx, req)
	if err != nil {
		return nil, job, fmt.Errorf("create backup: %w", err)
	}
	err = poll(ctx, time.Millisecond, func() (bool, error) {
		j, jerr := c.control.Job(ctx, job.ID)
		if jerr != nil || j.State.Final() {
			return true, jerr
		}
		snaps, serr := c.data.Snapshots(ctx, "disk")
		return slices.ContainsFunc(snaps, func(s agent.Snapshot) bool {
			return !slices.ContainsFunc(before, func(b agent.Snapshot) bool { return b.ID == s.ID })
		}), serr
	})
	return image, job, err
}

// settle waits for the verdict on the round's job after the crash.
func (c *campaign) settle(ctx context.Context, job agent.Job, image []byte) error {
	err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		j, err := c.control.Job(ctx, job.ID)
		if err != nil {
			return false, fmt.Errorf("job %s after the crash: %w", job.ID, err)
		}
		job = j
		return j.State.Final(), nil
	})
	if err != nil {
		return err
	}
	b, err := c.control.Backup(ctx, job.Backup)
	if err != nil {
		return fmt.Errorf("backup %s after the crash: %w", job.Backup, err)
	}
	switch b.Status {
	case agent.BackupAvailable:
		c.made++
		c.expect[b.ID] = image
	case agent.BackupError:
		if b.FailReason == "" {
			return fmt.Errorf("backup %s failed without a reason", b.ID)
		}
	default:
		return fmt.Errorf("job %s is %s, its backup %s", job.ID, job.State, b.Status)
	}
	return nil
}

// verify compares the newest backup, and now and then all, with what they
// must hold, and keeps their number small.
func (c *campaign) verify(ctx context.Context, round int) error {
	all, err := c.control.Backups(ctx)
	if err != nil {
		return err
	}
	var newest string
	for _, b := range all {
		if b.Status == agent.BackupError {
			if err := c.control.DeleteBackup(ctx, b.ID); err != nil {
				return fmt.Errorf("delete failed backup %s: %w", b.ID, err)
			}
			continue
		}
		if _, known := c.expect[b.ID]; !known {
			return fmt.Errorf("backup %s is %s and was never made", b.ID, b.Status)
		}
		newest = b.ID
		if round%25 == 24 {
			if err := c.compare(ctx, b.ID); err != nil {
				return err
			}
		}
	}
	if newest == "" {
		return nil
	}
	if err := c.compare(ctx, newest); err != nil {
		return err
	}
	for id := range c.expect {
		if len(c.expect) > 6 && id != newest {
			if err := c.control.DeleteBackup(ctx, id); err != nil {
				return fmt.Errorf("delete backup %s: %w", id, err)
			}
			delete(c.expect, id)
		}
	}
	return nil
}

// compare restores a backup into a file and compares it byte for byte.
func (c *campaign) compare(ctx context.Context, id string) error {
	want, known := c.expect[id]
	if !known {
		return fmt.Errorf("backup %s: not known what it must hold", id)
	}
	file := c.path("restored.img")
	job, err := c.control.Restore(ctx, agent.Restore{Backup: id, File: file})
	if err != nil {
		return fmt.Errorf("restore %s: %w", id, err)
	}
	if job, err = c.control.WaitJob(ctx, job.ID, nil); err != nil {
		return fmt.Errorf("restore %s: %w", id, err)
	}
	if job.State != agent.JobSucceeded {
		return fmt.Errorf("restore %s: %s: %s", id, job.State, job.Error)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("backup %s: restored %d bytes differ from the volume's %d, first at %d", id, len(got), len(want), firstDifference(got, want))
	}
	c.verified++
	return os.Remove(file)
}

// finish makes an incremental with nothing killed and compares everything.
func (c *campaign) finish() error {
	ctx := c.t.Context()
	image, job, err := c.operate(ctx)
	if err != nil {
		return err
	}
	if err := c.settle(ctx, job, image); err != nil {
		return err
	}
	if _, ok := c.expect[job.Backup]; !ok {
		return errors.New("the last backup failed though nothing was killed")
	}
	for id := range c.expect {
		if err := c.compare(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// firstDifference is the offset of the first byte in which a and b differ.
func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
