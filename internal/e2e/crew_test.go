package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

// crew is who works at one host, one thing at a time: only the kills come in
// between. It notes what it was told.
type crew struct {
	*host
	name     string
	rng      *rand.Rand
	disk     agent.Volume
	image    []byte            // what the volume holds
	contents map[string][]byte // by backup ID: what was made, ever
	held     map[string]bool   // available, and nobody asked to delete it since
	trash    map[string]bool   // told deleted

	made, restored, deleted, undeleted, pruned, stopped, killed int
}

func newCrew(h *host, n int, rng *rand.Rand) *crew {
	h.t.Helper()
	c := &crew{
		host: h, name: fmt.Sprintf("disk-%d", n), rng: rng, image: make([]byte, soakSize),
		contents: make(map[string][]byte), held: make(map[string]bool), trash: make(map[string]bool),
	}
	var err error
	if c.disk, err = h.control.CreateVolume(h.t.Context(), agent.CreateVolume{Name: c.name, Size: soakSize}); err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (c *crew) figures() string {
	return fmt.Sprintf("%d backups made, %d restored, %d deleted, %d taken back; %d prunes, of which %d stopped; %d kills",
		c.made, c.restored, c.deleted, c.undeleted, c.pruned, c.stopped, c.killed)
}

// round does one thing, with a kill in the middle now and then, and then looks
// whether all is as it was told.
func (c *crew) round() error {
	acts := []func(context.Context) error{c.backup, c.backup, c.backup, c.remove, c.remove, c.undelete, c.restore, c.pruneOnce, c.pruneOnce}
	act := acts[c.rng.IntN(len(acts))]
	died, err := c.during(c.rng.IntN(3) == 0, act)
	if err != nil && !died {
		return err
	}
	return c.settle()
}

// during does something and kills the agent in the middle if told to. It says
// whether it did.
func (c *crew) during(kill bool, act func(context.Context) error) (died bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if !kill {
		return false, act(ctx)
	}
	victim := c.agent
	var fired atomic.Bool
	timer := time.AfterFunc(time.Duration(c.rng.IntN(700))*time.Millisecond, func() {
		fired.Store(true)
		_ = victim.cmd.Process.Kill()
		cancel() // nobody answers any more
	})
	err = act(ctx)
	if timer.Stop() {
		return false, err
	}
	<-victim.done
	c.killed++
	return fired.Load(), err
}

// settle has the agent running with all jobs ended, and compares what it lists
// with what was told.
func (c *crew) settle() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	select {
	case <-c.agent.done:
		c.launchAgent()
	default:
	}
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		select {
		case <-c.agent.done:
			return false, errors.New("the agent ended by itself")
		default:
		}
		st, err := c.control.Status(ctx)
		return err == nil && st.Queued+st.Running+st.Undecided == 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the agent to be done: %w", err)
	}
	all, err := c.control.Backups(ctx)
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, b := range all {
		switch {
		case b.VolumeID != c.disk.ID:
		case b.Status == agent.BackupError:
			if err := c.control.DeleteBackup(ctx, b.ID); err != nil {
				return fmt.Errorf("delete failed backup %s: %w", b.ID, err)
			}
		case b.Status == agent.BackupAvailable:
			there[b.ID] = true
			if c.contents[b.ID] == nil {
				c.contents[b.ID] = bytes.Clone(c.image)
				c.held[b.ID] = true
				c.made++
			}
		}
	}
	for id := range c.held {
		if !there[id] {
			return fmt.Errorf("backup %s was available, nobody deleted it, and it is not there", id)
		}
	}
	return nil
}

// backup changes some blocks and backs the volume up. Some content is what other
// agents have, too.
func (c *crew) backup(ctx context.Context) error {
	conn, err := nbd.Dial(ctx, c.disk.URI, nbd.ClientOptions{})
	if err != nil {
		return err
	}
	for range 1 + c.rng.IntN(12) {
		at := c.rng.IntN(soakSize/soakBlock) * soakBlock
		source := rand.NewChaCha8([32]byte{byte(c.rng.IntN(60)), byte(c.rng.IntN(2))})
		_, _ = source.Read(c.image[at : at+soakBlock])
		if werr := conn.WriteAt(context.WithoutCancel(ctx), c.image[at:at+soakBlock], int64(at), false); werr != nil {
			return errors.Join(werr, conn.Close())
		}
	}
	if err = errors.Join(conn.Flush(context.WithoutCancel(ctx)), conn.Close()); err != nil {
		return err
	}
	job, err := c.control.CreateBackup(ctx, agent.CreateBackup{Volume: c.name, Auto: c.rng.IntN(3) > 0})
	if err != nil {
		return err
	}
	if _, err = c.control.WaitJob(ctx, job.ID, nil); err != nil {
		return err
	}
	return nil // one that a prune took for dead has failed, and is no backup
}

func (c *crew) pick(of map[string]bool) string {
	ids := slices.Sorted(maps.Keys(of))
	if len(ids) == 0 {
		return ""
	}
	return ids[c.rng.IntN(len(ids))]
}

func (c *crew) remove(ctx context.Context) error {
	id := c.pick(c.held)
	if id == "" || len(c.held) < 3 {
		return nil
	}
	delete(c.held, id) // asked for: nothing is promised any more
	if err := c.control.DeleteBackup(ctx, id); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	c.trash[id] = true
	c.deleted++
	return nil
}

func (c *crew) undelete(ctx context.Context) error {
	id := c.pick(c.trash)
	if id == "" {
		return nil
	}
	delete(c.trash, id)
	if _, err := c.control.Undelete(ctx, id); err != nil {
		return nil //nolint:nilerr // a prune was faster, or took it for dead: nothing was promised
	}
	c.held[id] = true
	c.undeleted++
	return nil
}

// restore compares a backup that nobody deleted.
func (c *crew) restore(ctx context.Context) error {
	id := c.pick(c.held)
	if id == "" {
		return nil
	}
	file := c.path("restored.img")
	job, err := c.control.Restore(ctx, agent.Restore{Backup: id, File: file, Overwrite: true})
	if err == nil {
		job, err = c.control.WaitJob(ctx, job.ID, nil)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", id, err)
	}
	got, err := os.ReadFile(file)
	if job.State != agent.JobSucceeded || err != nil || !bytes.Equal(got, c.contents[id]) {
		return fmt.Errorf("restore %s: %s %s, %d bytes, %w", id, job.State, job.Error, len(got), err)
	}
	c.restored++
	return nil
}

func (c *crew) prune(silence string) *exec.Cmd {
	return c.repo("prune", "--large", "--compact", "10", "--silence", silence)
}

// repo is a command on the stores.
func (c *crew) repo(args ...string) *exec.Cmd {
	args = append(append([]string{"repo"}, args...), "--password-file", c.path("password"))
	for _, s := range c.stores {
		args = append(args, "--store", s)
	}
	return exec.Command(c.bin, args...)
}

// pruneOnce prunes beside everybody, and kills that now and then.
func (c *crew) pruneOnce(context.Context) error {
	cmd := c.prune("3s")
	kill := c.rng.IntN(3) == 0
	delay := time.Duration(c.rng.IntN(1500)) * time.Millisecond
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	if kill {
		select {
		case err = <-ended:
		case <-timer.C:
			c.killed++
			_ = cmd.Process.Kill()
			<-ended
			return nil
		}
	} else {
		err = <-ended
	}
	c.pruned++
	if err != nil {
		c.stopped++
		c.t.Logf("%s: a prune stopped, which is never wrong: %s", c.name, strings.TrimSpace(out.String()))
	}
	return nil
}
