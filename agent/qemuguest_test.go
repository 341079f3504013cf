package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// qemuGuest is a qemu with one disk whose processor sleeps: its device is made to write by
// qemu's own qemu-io command.
type qemuGuest struct {
	*testing.T
	dir   string
	args  []string
	cmd   *exec.Cmd
	model []byte // what the disk holds
}

// newQEMUGuest starts one with a disk of this format and size in bytes.
func newQEMUGuest(t *testing.T, format string, size int) *qemuGuest {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairnq") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if rerr := os.RemoveAll(dir); rerr != nil {
			t.Error(rerr)
		}
	})
	g := &qemuGuest{T: t, dir: dir, model: make([]byte, size)}
	image, bios := filepath.Join(dir, "disk"), filepath.Join(dir, "bios")
	out, err := exec.CommandContext(t.Context(), needs.Tool(t, "qemu-img", "qemu-utils"), "create", "-q", "-f", format, image, strconv.Itoa(size)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	halt := make([]byte, 64<<10) // cli; hlt; jmp to hlt, where a processor begins
	copy(halt[len(halt)-16:], []byte{0xfa, 0xf4, 0xeb, 0xfd})
	if err = os.WriteFile(bios, halt, 0o600); err != nil {
		t.Fatal(err)
	}
	g.args = []string{
		"-accel", "tcg", "-machine", "pc", "-m", "16", "-nodefaults", "-display", "none", "-bios", bios,
		"-qmp", "unix:" + g.qmp() + ",server=on,wait=off", "-qmp", "unix:" + filepath.Join(dir, "own") + ",server=on,wait=off",
		"-blockdev", "driver=file,node-name=file,filename=" + image, "-blockdev", "driver=" + format + ",node-name=disk,file=file,discard=unmap",
		"-device", "virtio-blk-pci,id=d0,drive=disk",
	}
	g.start()
	t.Cleanup(g.kill)
	return g
}

func (g *qemuGuest) qmp() string { return filepath.Join(g.dir, "qmp") }

func (g *qemuGuest) start() {
	g.Helper()
	out, err := os.Create(filepath.Join(g.dir, "output"))
	if err != nil {
		g.Fatal(err)
	}
	g.cmd = exec.CommandContext(context.WithoutCancel(g.Context()), needs.Tool(g.T, "qemu-system-x86_64", "qemu-system-x86"), g.args...)
	g.cmd.Stdout, g.cmd.Stderr = out, out
	if err = errors.Join(g.cmd.Start(), out.Close()); err != nil {
		g.Fatal(err)
	}
	for range 2000 {
		if err = g.try("query-status", nil, nil); err == nil {
			return
		}
		pause(g.Context(), 10*time.Millisecond)
	}
	g.Fatalf("qemu does not start: %v: %s", err, contentOf(g.T, out.Name()))
}

// kill ends it as kill -9 does.
func (g *qemuGuest) kill() {
	if g.cmd.ProcessState == nil {
		_ = g.cmd.Process.Kill() // it may have ended
		_ = g.cmd.Wait()
	}
}

// do executes a command on the guest's own monitor.
func (g *qemuGuest) do(command string, args, result any) {
	g.Helper()
	if err := g.try(command, args, result); err != nil {
		g.Fatal(err)
	}
}

func (g *qemuGuest) try(command string, args, result any) (err error) {
	c, err := new(net.Dialer).DialContext(g.Context(), "unix", filepath.Join(g.dir, "own"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	dec, enc := json.NewDecoder(bufio.NewReader(c)), json.NewEncoder(c)
	for _, x := range []map[string]any{nil, {"execute": "qmp_capabilities"}, {"execute": command, "arguments": args}} {
		if x != nil {
			if args == nil {
				delete(x, "arguments")
			}
			if err = enc.Encode(x); err != nil {
				return err
			}
		}
		var answer struct {
			Event  string
			Return json.RawMessage
			Error  json.RawMessage
		}
		for first := true; first || answer.Event != ""; first = false {
			answer.Event = ""
			if err = dec.Decode(&answer); err != nil {
				return err
			}
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %s", command, answer.Error)
		}
		if result != nil && x["execute"] == command {
			return json.Unmarshal(answer.Return, result)
		}
	}
	return nil
}

// write has the guest write.
func (g *qemuGuest) write(pattern byte, off, n int) {
	g.Helper()
	out := filepath.Join(g.dir, "output")
	before := len(contentOf(g.T, out))
	g.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf(`qemu-io -d /machine/peripheral/d0/virtio-backend "write -P %d %d %d"`, pattern, off, n)}, nil)
	if said := string(contentOf(g.T, out)[before:]); !strings.HasPrefix(said, "wrote ") {
		g.Fatalf("the guest's write failed: %s", said)
	}
	copy(g.model[off:], bytes.Repeat([]byte{pattern}, n))
}

// left is all of ours that qemu has, but for bitmaps.
func (g *qemuGuest) left() []string {
	g.Helper()
	var nodes []struct {
		Name string `json:"node-name"`
	}
	var exports []struct {
		ID string `json:"id"`
	}
	g.do("query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	g.do("query-block-exports", nil, &exports)
	var l []string
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "cairn-") {
			l = append(l, n.Name)
		}
	}
	for _, e := range exports {
		l = append(l, e.ID)
	}
	return l
}

// held begins a backup of a guest, which reads so slowly that it lasts until something ends
// it, and returns when its snapshot is there.
func (g *qemuGuest) held(r *rig) Job {
	g.Helper()
	r.stopAgent()
	r.limits.ReadBytesPerSecond = 1
	r.startAgent()
	g.write(1, 0, 1<<20)
	j, err := r.agent.CreateBackup(g.Context(), CreateBackup{Volume: "guest", Force: true})
	if err != nil {
		g.Fatal(err)
	}
	r.until("a snapshot", func() bool {
		return slices.ContainsFunc(g.left(), func(name string) bool { return strings.Contains(name, ".") }) // its export
	})
	return j
}

// bitmaps are those of the disk.
func (g *qemuGuest) bitmaps() (l []string) {
	g.Helper()
	var nodes []struct {
		Name    string                  `json:"node-name"`
		Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
	}
	g.do("query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if n.Name == "disk" {
				l = append(l, b.Name)
			}
		}
	}
	return l
}
