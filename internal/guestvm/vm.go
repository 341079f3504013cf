// Package guestvm runs real guests for tests: a Linux kernel under qemu, without hardware
// acceleration and so on any machine, with a small root in memory or on a disk of the
// test's. It reaches user land in about three seconds.
//
// The guest's first process is package guest, to which the test speaks over a serial port
// of its own: it runs scripts in the guest and connects to unix sockets there. A guest
// ends with its test.
package guestvm

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/guestvm/wire"
	"github.com/cairnbackup/cairn/internal/needs"
)

// bootLimit is for a busy machine; see the package comment.
const bootLimit = 2 * time.Minute

// Options say what a guest has.
type Options struct {
	// Root is the device that the guest boots from, as /dev/vda: it must hold a [Tree] on
	// ext4. Empty: the root is in memory.
	Root string
	// Files are in the root in memory: path in the guest to path on the host. Those of a
	// root on a disk are named to [Tree].
	Files map[string]string
	// Modules are loaded besides those for disks and the serial port: "nbd", "loop",
	// "virtio_net". What they need is loaded with them.
	Modules []string
	// Args are further arguments of qemu's, for disks: see [NBDDisk].
	Args []string
	// Memory is in MiB; 0 is 192.
	Memory int
	// QEMU is the program; empty: the installed one.
	QEMU string
}

// NBDDisk is the arguments of a disk that an NBD server has on a unix socket. The first is
// /dev/vda in the guest. node is its name in qemu.
func NBDDisk(node, socket, export string) []string {
	return []string{
		"-blockdev", fmt.Sprintf("driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,discard=unmap", node, socket, export),
		"-device", "virtio-blk-pci,drive=" + node,
	}
}

// FileDisk is the arguments of a disk that is a raw file, as in [NBDDisk].
func FileDisk(node, file string) []string {
	return []string{
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s,filename=%s,discard=unmap", node, file),
		"-device", "virtio-blk-pci,drive=" + node,
	}
}

// GuestAgent is the arguments of the serial port of a QEMU guest agent, whose other end is
// a unix socket that qemu makes. In the guest it is [GuestAgentPort].
func GuestAgent(socket string) []string {
	return []string{
		"-chardev", "socket,id=qga,path=" + socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
	}
}

// GuestAgentPort is the device in the guest of [GuestAgent]: the port behind the test's.
const GuestAgentPort = "/dev/vport0p2"

// VM is a running guest.
type VM struct {
	tb      testing.TB
	cmd     *exec.Cmd
	port    *link
	console string        // file
	done    chan struct{} // closed when qemu has ended
}

// Machine is a guest that can be booted again and again.
type Machine struct {
	// Monitor is the unix socket on which qemu speaks QMP with one client at a time.
	Monitor string

	tb      testing.TB
	options Options
	qemu    string // program
	dir     string
}

// New makes a guest that is off.
func New(tb testing.TB, o Options) *Machine {
	tb.Helper()
	qemu := o.QEMU
	if qemu == "" {
		qemu = needs.Tool(tb, "qemu-system-x86_64", "qemu-system-x86")
	}
	// A unix socket's path must be short, which tb.TempDir is not.
	dir, err := os.MkdirTemp("", "guest-") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if rerr := os.RemoveAll(dir); rerr != nil {
			tb.Error(rerr)
		}
	})
	m := &Machine{Monitor: filepath.Join(dir, "qmp"), tb: tb, options: o, qemu: qemu, dir: dir}
	if err = makeInitramfs(tb, m.initramfs(), o); err != nil {
		tb.Fatalf("make the initramfs: %v", err)
	}
	return m
}

// Start makes a guest and boots it.
func Start(tb testing.TB, o Options) *VM {
	tb.Helper()
	return New(tb, o).Boot()
}

// Boot boots the guest and waits until it can be spoken to. What ran of it before must
// have ended.
func (m *Machine) Boot() *VM {
	tb := m.tb
	tb.Helper()
	v := &VM{tb: tb, console: filepath.Join(m.dir, "console"), done: make(chan struct{})}
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "unix", filepath.Join(m.dir, "port"))
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if err = v.start(m, l.Addr().String()); err != nil {
		tb.Fatalf("start qemu: %v", err)
	}
	if err = v.awaitBoot(l); err != nil {
		v.Kill()
		tb.Fatalf("the guest does not boot: %v\n%s", err, v.Console())
	}
	return v
}

func (m *Machine) initramfs() string { return filepath.Join(m.dir, "initramfs") }

func makeInitramfs(tb testing.TB, file string, o Options) error {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "initramfs")
	Tree(tb, dir, o.Files)
	if err := os.Symlink("/sbin/init", filepath.Join(dir, "init")); err != nil {
		return err
	}
	modules, err := inOrder(tb, append([]string{"virtio_pci", "virtio_blk", "virtio_console"}, o.Modules...))
	if err != nil {
		return err
	}
	for i, m := range modules {
		if err = copyFile(filepath.Join(dir, "modules", fmt.Sprintf("%02d-%s", i, filepath.Base(m))), m); err != nil {
			return err
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err = archive(f, dir); err != nil {
		_ = f.Close() // the first error counts
		return err
	}
	return f.Close()
}

func (v *VM) start(m *Machine, port string) error {
	o := m.options
	memory := o.Memory
	if memory == 0 {
		memory = 192
	}
	// If the guest's first process ends, the kernel panics, and qemu ends instead of starting
	// anew. On a busy machine the kernel finds the emulated timer too slow, and panics.
	line := "console=ttyS0 quiet panic=-1 no_timer_check"
	if o.Root != "" {
		line += " root=" + o.Root
	}
	args := []string{
		// Not KVM: where it is there and does not work, qemu hangs instead of saying so.
		"-accel", "tcg", "-cpu", "max", "-m", strconv.Itoa(memory), "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", tool(v.tb, "vmlinuz"), "-initrd", m.initramfs(), "-append", line,
		"-serial", "file:" + v.console,
		"-chardev", "socket,id=port,path=" + port,
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port",
		"-qmp", "unix:" + m.Monitor + ",server=on,wait=off",
	}
	v.cmd = exec.Command(m.qemu, append(args, o.Args...)...) //nolint:gosec,noctx // the test ends it in its own time
	var said bytes.Buffer
	v.cmd.Stdout, v.cmd.Stderr = &said, &said
	if err := v.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = v.cmd.Wait() // how it ended is known, or the console says it
		close(v.done)
	}()
	v.tb.Cleanup(func() {
		v.Kill()
		if v.tb.Failed() {
			v.tb.Logf("console of the guest:\n%s\nqemu: %s", v.Console(), said.String())
		}
	})
	return nil
}

// awaitBoot waits for the guest's Hello on the serial port that qemu connects to l.
func (v *VM) awaitBoot(l net.Listener) error {
	conns := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			conns <- c
		}
		close(conns)
	}()
	limit := time.NewTimer(bootLimit)
	defer limit.Stop()
	select {
	case c, ok := <-conns:
		if !ok {
			return errors.New("no connection to its serial port")
		}
		v.port = newLink(c)
	case <-v.done:
		return errors.New("qemu has ended")
	case <-limit.C:
		return errors.New("qemu does not start")
	}
	v.tb.Cleanup(v.port.close)
	select {
	case <-v.port.hello:
		return nil
	case <-v.done:
		return errors.New("qemu has ended")
	case <-limit.C:
		return fmt.Errorf("nothing is heard of it for %v", bootLimit)
	}
}

// Done is closed when qemu has ended, for whatever reason.
func (v *VM) Done() <-chan struct{} { return v.done }

// Console is what the kernel and the first process said, at most the last 16 KiB.
func (v *VM) Console() string {
	b, err := os.ReadFile(v.console)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-16<<10):])
}

// Kill ends qemu as kill -9 does: for the guest the power fails, but what it wrote to its
// disks is with their servers.
func (v *VM) Kill() {
	v.tb.Helper()
	if err := v.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		v.tb.Errorf("kill qemu: %v", err)
	}
	<-v.done
}

// Shutdown ends all processes of the guest, unmounts its file systems and turns it off.
func (v *VM) Shutdown() {
	v.tb.Helper()
	if err := v.port.write(wire.Frame{Kind: wire.Off}); err != nil {
		v.tb.Fatalf("shut the guest down: %v", err)
	}
	limit := time.NewTimer(bootLimit)
	defer limit.Stop()
	select {
	case <-v.done:
	case <-limit.C:
		v.tb.Fatalf("the guest does not shut down:\n%s", v.Console())
	}
}
