package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/nbd"
)

// guest is a qemu whose processor sleeps: its device is made to write by qemu's
// own qemu-io command, on the device's side of everything.
type guest struct {
	tb     testing.TB
	disk   *Disk
	dir    string
	image  string
	format string
	size   int64
	args   []string
	cmd    *exec.Cmd
	output *os.File // what its qemu-io prints
	errors *os.File // what qemu itself has to say, at any time
	model  []byte
}

type guestOptions struct {
	format string // raw
	size   int64  // 4 MiB
	device string // virtio-blk-pci
	args   []string
}

func newGuest(tb testing.TB, o guestOptions) *guest {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cairn-qemu") //nolint:usetesting // a socket's path must be short
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	if o.format == "" {
		o.format = "raw"
	}
	if o.size == 0 {
		o.size = 4 << 20
	}
	if o.device == "" {
		o.device = "virtio-blk-pci,id=d0,drive=disk"
	}
	g := &guest{tb: tb, dir: dir, image: filepath.Join(dir, "disk"), format: o.format, size: o.size, model: make([]byte, o.size)}
	run(tb, needs.Tool(tb, "qemu-img", "qemu-utils"), "create", "-q", "-f", o.format, g.image, strconv.FormatInt(o.size, 10))
	g.args = append([]string{
		"-accel", "tcg", "-machine", "pc", "-m", "16", "-nodefaults", "-display", "none", "-bios", sleeper(tb, dir),
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		"-qmp", "unix:" + filepath.Join(dir, "guest") + ",server=on,wait=off",
		"-blockdev", "driver=file,node-name=file,filename=" + g.image,
		"-blockdev", "driver=" + o.format + ",node-name=disk,file=file,discard=unmap",
	}, o.args...)
	g.args = append(g.args, "-device", o.device)
	fleeces := filepath.Join(dir, "fleeces")
	if err := os.Mkdir(fleeces, 0o700); err != nil {
		tb.Fatal(err)
	}
	g.disk = &Disk{Monitor: filepath.Join(dir, "qmp"), Node: "d0", Tag: "vol1", Dir: fleeces}
	g.start()
	tb.Cleanup(g.kill)
	return g
}

// sleeper is a BIOS that halts: cli; hlt; jmp to hlt, where a processor begins.
func sleeper(tb testing.TB, dir string) string {
	tb.Helper()
	bios := make([]byte, 64<<10)
	copy(bios[len(bios)-16:], []byte{0xfa, 0xf4, 0xeb, 0xfd})
	name := filepath.Join(dir, "bios")
	if err := os.WriteFile(name, bios, 0o600); err != nil {
		tb.Fatal(err)
	}
	return name
}

func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (g *guest) start() {
	g.tb.Helper()
	for name, f := range map[string]**os.File{"output": &g.output, "errors": &g.errors} {
		var err error
		if *f, err = os.OpenFile(filepath.Join(g.dir, name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
			g.tb.Fatal(err)
		}
	}
	// Not of the test's context: it ends before the clean-up.
	g.cmd = exec.Command(needs.Tool(g.tb, "qemu-system-x86_64", "qemu-system-x86"), g.args...)
	g.cmd.Stdout, g.cmd.Stderr = g.output, g.errors
	if err := g.cmd.Start(); err != nil {
		g.tb.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		m, err := openMonitor(g.tb.Context(), filepath.Join(g.dir, "guest"), dialUnix, greetingLimit)
		if err == nil {
			if err = m.Close(); err != nil {
				g.tb.Fatal(err)
			}
			return
		}
		if time.Now().After(end) {
			g.kill()
			g.tb.Fatalf("qemu does not start: %v\n%s", err, g.printed())
		}
	}
}

// kill ends qemu at once.
func (g *guest) kill() {
	if g.cmd.ProcessState != nil {
		return
	}
	_ = g.cmd.Process.Kill() // it may have ended
	_ = g.cmd.Wait()
	if err := errors.Join(g.output.Close(), g.errors.Close()); err != nil {
		g.tb.Error(err)
	}
}

// quit ends qemu in order.
func (g *guest) quit() {
	g.tb.Helper()
	g.command("quit", nil, nil)
	if err := g.cmd.Wait(); err != nil {
		g.tb.Fatalf("qemu ended with %v\n%s", err, g.printed())
	}
}

// command executes a command on the guest's own monitor.
func (g *guest) command(command string, args, result any) {
	g.tb.Helper()
	if err := g.try(command, args, result); err != nil {
		g.tb.Fatal(err)
	}
}

// try is command where it may be refused.
func (g *guest) try(command string, args, result any) error {
	m, err := openMonitor(g.tb.Context(), filepath.Join(g.dir, "guest"), dialUnix, greetingLimit)
	if err != nil {
		return err
	}
	return errors.Join(m.call(g.tb.Context(), command, args, result), m.Close())
}

// io has the guest's device do something, and returns what qemu-io said of it.
func (g *guest) io(format string, args ...any) string {
	g.tb.Helper()
	var qdev []device
	g.command("query-block", nil, &qdev)
	printed := len(g.content(g.output))
	line := fmt.Sprintf("qemu-io -d %s \"%s\"", qdev[0].qom(), fmt.Sprintf(format, args...))
	g.command("human-monitor-command", map[string]any{"command-line": line}, nil)
	return g.content(g.output)[printed:]
}

// printed is all that qemu has printed.
func (g *guest) printed() string {
	g.tb.Helper()
	return g.content(g.output) + g.content(g.errors)
}

func (g *guest) content(f *os.File) string {
	g.tb.Helper()
	p, err := os.ReadFile(f.Name())
	if err != nil {
		g.tb.Fatal(err)
	}
	return string(p)
}

func (g *guest) write(pattern byte, off, n int64) {
	g.tb.Helper()
	if out := g.io("write -P %d %d %d", pattern, off, n); !strings.HasPrefix(out, "wrote ") {
		g.tb.Fatalf("the guest's write failed: %s", out)
	}
	copy(g.model[off:], bytes.Repeat([]byte{pattern}, int(n)))
}

// zero is what a guest's discard becomes that must read as zeros.
func (g *guest) zero(off, n int64) {
	g.tb.Helper()
	if out := g.io("write -z -u %d %d", off, n); !strings.HasPrefix(out, "wrote ") {
		g.tb.Fatalf("the guest's discard failed: %s", out)
	}
	clear(g.model[off : off+n])
}

func (g *guest) snapshot(o SnapshotOptions) Snapshot {
	g.tb.Helper()
	s, err := g.disk.Snapshot(g.tb.Context(), o)
	if err != nil {
		g.tb.Fatal(err)
	}
	return s
}

func (g *guest) drop(id string) {
	g.tb.Helper()
	if err := g.disk.DropSnapshot(g.tb.Context(), id); err != nil {
		g.tb.Fatal(err)
	}
}

// read returns what a snapshot shows, and for each checkpoint what changed since.
func read(tb testing.TB, s Snapshot) ([]byte, map[string][]blockmap.Extent) {
	tb.Helper()
	var contexts []string
	for _, name := range s.Since {
		contexts = append(contexts, nbd.ContextDirtyBitmap+name)
	}
	c, err := nbd.Dial(tb.Context(), s.URI, nbd.ClientOptions{Contexts: contexts})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if closing := c.Close(); closing != nil {
			tb.Error(closing)
		}
	})
	if !slices.Equal(c.Contexts(), contexts) {
		tb.Fatalf("contexts %q, asked for %q", c.Contexts(), contexts)
	}
	p := make([]byte, c.Size())
	if err = c.ReadAt(tb.Context(), p, 0); err != nil {
		tb.Fatal(err)
	}
	dirty := map[string][]blockmap.Extent{}
	for _, name := range s.Since {
		if dirty[name], err = c.Map(tb.Context(), nbd.ContextDirtyBitmap+name, 0, c.Size()); err != nil {
			tb.Fatal(err)
		}
	}
	return p, dirty
}

func (g *guest) version() version {
	g.tb.Helper()
	var q struct {
		Qemu version `json:"qemu"`
	}
	g.command("query-version", nil, &q)
	return q.Qemu
}
