package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/guestvm"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// attached is a guest whose kernel has a volume of the host's as /dev/nbd0.
type attached struct {
	*host
	vm     *guestvm.VM
	uri    string // of the volume, as the guest reaches it
	secret string // of the volume behind the door with TLS, as the guest reaches it
	volume serve.Volume
	attach *guestvm.Command
	said   *saying
}

// TestAttach: the kernel's own NBD driver, in a guest, has a volume as a block device by
// "cairn attach": it writes, trims and flushes; its requests wait while the data plane is
// dead, and go on with the next one; and the device goes by "cairn detach", or with the
// command that attached it. So it does over TLS, which that command carries for the kernel.
func TestAttach(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	a := newAttached(t)
	a.content()
	a.refusals()
	a.serverDies(2)
	a.mounted()

	a.mustRun("cairn detach /dev/nbd0")
	if err := a.attach.Wait(); err != nil {
		t.Errorf("attach ended with: %v\n%s", err, a.said)
	}
	a.mustRun("test $(blockdev --getsize64 /dev/nbd0) = 0")
	a.idle()

	// Read-only, on a device of the kernel's choice, ended by a signal.
	a.begin(a.uri + "@ro")
	if out, err := a.vm.Run(t.Context(), "dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 conv=fsync"); err == nil {
		t.Errorf("a read-only device was written to: %s", out)
	}
	if err := a.attach.Signal(15); err != nil {
		t.Fatal(err)
	}
	if err := a.attach.Wait(); err != nil {
		t.Errorf("attach ended with: %v\n%s", err, a.said)
	}
	a.mustRun("test $(blockdev --getsize64 /dev/nbd0) = 0")

	// Left to the kernel alone.
	a.mustRun("cairn attach --detach " + a.uri + " /dev/nbd3 && dd if=/dev/nbd3 of=/dev/null bs=1M && cairn detach /dev/nbd3")
	a.overTLS()
	a.vm.Shutdown()
}

func newAttached(t *testing.T) *attached {
	t.Helper()
	a := &attached{host: emptyHost(t, cairnBinary(t))}
	ca := tlstest.New(t)
	a.doors(ca)
	a.startServe(a.settings...)
	var err error
	if a.volume, err = a.data.CreateVolume(t.Context(), serve.CreateVolume{Name: "disk", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	reached := func(dial func(ctx context.Context) (net.Conn, error)) string {
		return strings.Replace(forwardTCP(t, dial), "127.0.0.1", "10.0.2.2", 1) + "/disk"
	}
	a.uri = "nbd://" + reached(a.socket)
	a.secret = "nbds://" + reached(a.door) + "?tls-certificates=/etc/pki&tls-hostname=localhost"
	files := map[string]string{"/bin/cairn": guestvm.Build(t, "github.com/cairnbackup/cairn/cmd/cairn")}
	certs := ca.ClientDir("alice")
	for _, name := range []string{tlstest.CA, tlstest.ClientCert, tlstest.ClientKey} {
		files["/etc/pki/"+name] = filepath.Join(certs, name)
	}
	a.vm = guestvm.Start(t, guestvm.Options{
		Files:   files,
		Modules: []string{"nbd", "virtio_net"}, Memory: 512,
		Args: []string{"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="},
	})
	a.mustRun("ip link set lo up && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")
	a.begin(a.uri)
	return a
}

// begin attaches and waits for the device, which is /dev/nbd0.
func (a *attached) begin(uri string) {
	a.t.Helper()
	var err error
	a.said = &saying{}
	if a.attach, err = a.vm.Begin("exec cairn attach --timeout 1s --wait 2m '"+uri+"'", a.said); err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	err = poll(ctx, 10*time.Millisecond, func() (bool, error) {
		select {
		case <-a.attach.Done():
			return false, fmt.Errorf("it ended: %w", a.attach.Wait())
		default:
			return strings.Contains(a.said.String(), "/dev/nbd0 is "+uri), nil
		}
	})
	if err != nil {
		a.t.Fatalf("attach: %v\n%s", err, a.said)
	}
}

func (a *attached) mustRun(script string) string {
	a.t.Helper()
	out, err := a.vm.Run(a.t.Context(), script)
	if err != nil {
		a.t.Fatalf("in the guest, %q: %v\n%s\nattach: %s", script, err, out, a.said)
	}
	return out
}

// content compares what the guest writes with what the host has.
func (a *attached) content() {
	a.t.Helper()
	out := a.mustRun(`set -e
		test $(blockdev --getsize64 /dev/nbd0) = $((64 << 20))
		test $(cat /sys/block/nbd0/queue/logical_block_size) = 512
		dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null
		dd if=/tmp/r of=/dev/nbd0 bs=1M seek=4 conv=fsync 2>/dev/null
		echo 3 >/proc/sys/vm/drop_caches
		dd if=/dev/nbd0 bs=1M skip=4 count=8 2>/dev/null | cmp - /tmp/r
		blkdiscard -o 5M -l 1M /dev/nbd0
		dd if=/dev/zero of=/tmp/r bs=1M seek=1 count=1 conv=notrunc 2>/dev/null
		dd if=/dev/nbd0 bs=1M skip=4 count=8 2>/dev/null | cmp - /tmp/r
		sha256sum </tmp/r`)
	c, err := nbd.Dial(a.t.Context(), nbd.URI(a.volume.Socket, "disk@ro"), nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}})
	if err != nil {
		a.t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 8<<20)
	if err = c.ReadAt(a.t.Context(), p, 4<<20); err != nil {
		a.t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(p)); !strings.HasPrefix(out, sum) {
		a.t.Errorf("the host has the checksum %s, the guest %s", sum, out)
	}
	l, err := c.Map(a.t.Context(), nbd.ContextAllocation, 5<<20, 1<<20)
	if err != nil || len(l) != 1 || l[0].State == 0 {
		a.t.Errorf("what was trimmed is %+v: %v", l, err)
	}
	if v, err := a.data.Volume(a.t.Context(), "disk"); err != nil || v.Writers != 4 {
		a.t.Errorf("%d connections, %v", v.Writers, err)
	}
}

// refusals are what people get wrong.
func (a *attached) refusals() {
	a.t.Helper()
	for script, want := range map[string]string{
		"cairn attach " + a.uri + "@ro /dev/nbd0": "/dev/nbd0 is attached already: detach it first",
		"cairn attach " + a.uri + "nothing":       "no export of that name",
		"cairn attach " + a.uri + " /dev/sda":     "is no device of the kernel's NBD driver",
		"cairn detach /dev/nbd1":                  "/dev/nbd1 is not attached to anything",
		"cairn detach /dev/nbd4711":               "/dev/nbd4711 is not attached to anything",
	} {
		if out, err := a.vm.Run(a.t.Context(), script); err == nil || !strings.Contains(out, want) {
			a.t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

// serverDies kills the data plane so many times under a guest that writes and compares.
func (a *attached) serverDies(times int) {
	a.t.Helper()
	log := &saying{}
	writing, err := a.vm.Begin(`rm -f /run/stop
		i=0
		while [ ! -e /run/stop ]; do
			i=$((i+1))
			head -c 65536 /dev/urandom >/tmp/w
			dd if=/tmp/w of=/dev/nbd0 bs=64k seek=$((i % 32)) conv=fsync 2>/dev/null || exit 1
			dd if=/dev/nbd0 bs=64k skip=$((i % 32)) count=1 iflag=direct 2>/dev/null | cmp - /tmp/w || exit 1
			echo round $i
		done`, log)
	if err != nil {
		a.t.Fatal(err)
	}
	rounds := func() {
		a.t.Helper()
		ctx, cancel := context.WithTimeout(a.t.Context(), 2*time.Minute)
		defer cancel()
		n := strings.Count(log.String(), "round") + 3
		err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
			select {
			case <-writing.Done():
				return false, fmt.Errorf("the guest stopped writing: %w", writing.Wait())
			default:
				return strings.Count(log.String(), "round") >= n, nil
			}
		})
		if err != nil {
			a.t.Fatalf("%v\n%s\nattach: %s", err, log, a.said)
		}
	}
	for range times {
		rounds()
		a.kill(a.serve)
		time.Sleep(time.Second) // not to be waited for: that nothing happens
		a.startServe(a.settings...)
		rounds()
	}
	a.mustRun("touch /run/stop")
	if err := writing.Wait(); err != nil {
		a.t.Errorf("the guest's writing: %v\n%s", err, log)
	}
}

// mounted: a device in use is not taken away.
func (a *attached) mounted() {
	a.t.Helper()
	a.mustRun("mkdir -p /mnt && mke2fs /dev/nbd0 >/dev/null 2>&1 && mount -t ext4 /dev/nbd0 /mnt && echo kept >/mnt/file")
	if out, err := a.vm.Run(a.t.Context(), "cairn detach /dev/nbd0"); err == nil || !strings.Contains(out, "is mounted or in use") {
		a.t.Errorf("detached while mounted: %v\n%s", err, out)
	}
	a.mustRun("umount /mnt && mount -t ext4 /dev/nbd0 /mnt && grep kept /mnt/file && umount /mnt")
}

// idle waits until nobody writes to the volume.
func (a *attached) idle() {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	if err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		v, err := a.data.Volume(ctx, "disk")
		return !v.InUse, err
	}); err != nil {
		a.t.Fatalf("the volume stays in use: %v", err)
	}
}

// saying is the output of a command while it runs.
type saying struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *saying) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
