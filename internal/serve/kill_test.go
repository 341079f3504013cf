package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// runEnv makes the test binary a data plane in the folder that it names.
const runEnv = "CAIRN_SERVE_TEST_RUN"

var killRounds = flag.Int("kill-rounds", 8, "how often TestKill kills a data plane")

func optionsIn(dir string) serve.Options {
	return serve.Options{State: filepath.Join(dir, "state"), Control: filepath.Join(dir, "c.sock"), NBDDir: filepath.Join(dir, "nbd")}
}

func runHelper(dir string) int {
	o := optionsIn(dir)
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serve.Run(ctx, o, func() { fmt.Println("ready") }); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// victim is a data plane in a process of its own.
type victim struct {
	*serve.Client
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

func startVictim(t *testing.T, dir string) *victim {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{Client: serve.NewClient(optionsIn(dir).Control), cmd: exec.CommandContext(t.Context(), exe)}
	v.cmd.Env = append(os.Environ(), runEnv+"="+dir)
	v.cmd.Stderr = &v.stderr
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("data plane says %q, %v\n%s", line, err, &v.stderr)
	}
	return v
}

// kill is kill -9; it returns when the process is gone.
func (v *victim) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	v.Close()
}

// history is what a data plane has confirmed, whatever was done to it.
type history struct {
	content []byte            // of the volume
	unsure  [2]int            // the range of a write that got no answer
	snaps   map[string][]byte // content of each confirmed snapshot, by name
	maybe   string            // a snapshot whose creation or deletion got no answer
	changed map[int64]bool    // blocks changed since checkpoint "start"
	named   int
	notes   []string // attributes that the volume may have: the confirmed ones, and those that got no answer
}

// A data plane that is killed at any moment has, when it is back, all that it
// confirmed: writes, snapshots with their content, deletions, attributes, and no changed
// block is called clean.
func TestKill(t *testing.T) {
	dir := filepath.Dir(options(t).State)
	const size = 2 * mib
	h := &history{content: make([]byte, size), snaps: map[string][]byte{}, changed: map[int64]bool{}, notes: []string{`{"note":0}`}}
	r := rand.New(rand.NewPCG(7, 7))

	v := startVictim(t, dir)
	if _, err := v.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: size, Attributes: json.RawMessage(h.notes[0])}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.CreateSnapshots(t.Context(), serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"start"}}); err != nil {
		t.Fatal(err)
	}
	for round := range *killRounds {
		ops := 1 + r.IntN(60)
		dead := make(chan struct{})
		c := dial(t, mustVolume(t, v).URI)
		for i := 0; ; i++ {
			if i == ops {
				go func() { // while the next operations run
					v.kill()
					close(dead)
				}()
			}
			if err := h.step(t.Context(), v, c, r); err != nil {
				if i < ops {
					t.Fatalf("round %d: %v\n%s", round, err, &v.stderr)
				}
				break
			}
		}
		<-dead
		_ = c.Close()
		v = startVictim(t, dir)
		h.check(t, v)
		if t.Failed() {
			t.Fatalf("round %d\n%s", round, &v.stderr)
		}
	}
	v.kill()
}

func mustVolume(t *testing.T, v *victim) serve.Volume {
	t.Helper()
	got, err := v.Volume(t.Context(), "db")
	if err != nil || got.Status == serve.StatusError {
		t.Fatalf("volume %+v, %v\n%s", got, err, &v.stderr)
	}
	return got
}

// step does one thing and writes down what was confirmed.
func (h *history) step(ctx context.Context, v *victim, c *nbd.Client, r *rand.Rand) error {
	switch k := r.IntN(20); {
	case k == 0 && len(h.snaps) < 4:
		h.named++
		name := fmt.Sprintf("s%d", h.named)
		h.maybe = name
		if _, err := v.CreateSnapshots(ctx, serve.CreateSnapshots{Volumes: []string{"db"}, Name: name, Force: true}); err != nil {
			return err
		}
		h.snaps[name] = bytes.Clone(h.content)
	case k == 1 && len(h.snaps) > 0:
		name := slices.Sorted(maps.Keys(h.snaps))[0]
		h.maybe = name
		delete(h.snaps, name)
		if err := v.DeleteSnapshot(ctx, name); err != nil {
			return err
		}
	case k == 2:
		h.named++
		note := fmt.Sprintf(`{"note":%d}`, h.named)
		h.notes = append(h.notes, note)
		if _, err := v.SetAttributes(ctx, "db", serve.SetAttributes{Attributes: json.RawMessage(note), Was: json.RawMessage(h.notes[0])}); err != nil {
			return err
		}
		h.notes = []string{note}
	default:
		off := 512 * r.IntN(len(h.content)/512)
		n := min(512*(1+r.IntN(300)), len(h.content)-off)
		h.unsure = [2]int{off, off + n}
		for b := off / block; b <= (off+n-1)/block; b++ {
			h.changed[int64(b)] = true
		}
		p := make([]byte, n)
		if k > 4 {
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			if err := c.WriteAt(ctx, p, int64(off), false); err != nil {
				return err
			}
		} else if err := c.Zero(ctx, int64(off), int64(n), true); err != nil {
			return err
		}
		copy(h.content[off:], p)
		h.unsure = [2]int{}
	}
	h.maybe = ""
	return nil
}

// check compares a data plane that is back with the history, and takes over
// what was unsure.
func (h *history) check(t *testing.T, v *victim) {
	t.Helper()
	vol := mustVolume(t, v)
	if !slices.Contains(h.notes, string(vol.Attributes)) {
		t.Errorf("attributes %s after kill, want one of %s", vol.Attributes, h.notes)
	}
	h.notes = []string{string(vol.Attributes)}
	c := dial(t, nbd.URI(vol.Socket, "db@ro"))
	got := read(t, c, 0, int64(len(h.content)))
	closeClient(t, c)
	copy(h.content[h.unsure[0]:h.unsure[1]], got[h.unsure[0]:h.unsure[1]])
	h.unsure = [2]int{}
	same(t, "volume after kill", got, h.content)

	ss, err := v.Snapshots(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range ss {
		want, ok := h.snaps[s.Name]
		seen[s.Name] = true
		switch {
		case s.Name == h.maybe && h.maybe != "":
			if err = v.DeleteSnapshot(t.Context(), s.Name); err != nil {
				t.Errorf("delete %s: %v", s.Name, err)
			}
		case !ok:
			t.Errorf("snapshot %+v should not be there", s)
		case s.Status != serve.StatusAvailable:
			t.Errorf("snapshot %+v", s)
		default:
			c := dial(t, s.URI)
			same(t, "snapshot "+s.Name+" after kill", read(t, c, 0, int64(len(want))), want)
			closeClient(t, c)
		}
	}
	h.maybe = ""
	for name := range h.snaps {
		if !seen[name] {
			t.Errorf("confirmed snapshot %s is gone", name)
		}
	}
	dirty := dirtyOf(t, vol.URI, "start")
	for b := range h.changed {
		if !slices.Contains(dirty, b) {
			t.Errorf("block %d was changed and counts as clean", b)
		}
	}
	if len(vol.Checkpoints) != 1 || vol.Checkpoints[0].Doubt != "" {
		t.Errorf("checkpoints %+v: a kill is no reason for doubt", vol.Checkpoints)
	}
	es, err := os.ReadDir(filepath.Dir(vol.Socket))
	if err != nil || len(es) != 1+len(h.snaps) {
		t.Errorf("sockets %v, %v; want %d", es, err, 1+len(h.snaps))
	}
}
