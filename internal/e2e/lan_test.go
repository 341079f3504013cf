package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"golang.org/x/sys/unix"
)

// lan is a network of machines that are namespaces of this one. This one is on it too,
// with the address ip.
type lan struct {
	t       *testing.T
	name    string // of the bridge; those of the machines begin so
	ip      string
	network string // as in 198.18.7.0/24
	made    int
}

// newLAN makes a network, which is removed when the test ends. Where namespaces cannot
// be made the test ends.
func newLAN(t *testing.T) *lan {
	t.Helper()
	needs.Tool(t, "ip", "iproute2")
	l := &lan{t: t, name: fmt.Sprintf("cairn%06x", rand.N(1<<24))}
	if out, err := l.try("netns", "add", l.name); err != nil {
		needs.Missing(t, "namespaces of the network cannot be made here: %v: %s", err, out)
	}
	l.run("netns", "del", l.name)
	t.Cleanup(func() { l.run("link", "del", l.name) })
	l.run("link", "add", l.name, "type", "bridge")
	l.takeAddresses()
	l.run("link", "set", l.name, "up")
	return l
}

// takeAddresses takes some of those that RFC 2544 reserves for tests, which nobody else
// on this machine uses.
func (l *lan) takeAddresses() {
	l.t.Helper()
	used, err := l.try("-4", "address", "show")
	if err != nil {
		l.t.Fatal(err, used)
	}
	for range 100 {
		prefix := fmt.Sprintf("198.%d.%d.", 18+rand.N(2), rand.N(256))
		if !strings.Contains(used, " "+prefix) {
			l.ip, l.network = prefix+"1", prefix+"0/24"
			l.run("address", "add", l.ip+"/24", "dev", l.name)
			return
		}
	}
	l.t.Fatal("all addresses for tests are used here")
}

// try runs ip.
func (l *lan) try(args ...string) (string, error) {
	// Also to clean up, when the test's context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	return string(out), err
}

// run runs ip, which has to succeed.
func (l *lan) run(args ...string) {
	l.t.Helper()
	if out, err := l.try(args...); err != nil {
		l.t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// box is a machine of the network. Files, processes and unix sockets are this machine's.
type box struct {
	lan   *lan
	ns    string // namespace
	cable string // its end at the bridge
	ip    string
	http  *http.Client // of who is on it
}

// machine adds one.
func (l *lan) machine() *box {
	l.t.Helper()
	l.made++
	m := &box{
		lan: l, ns: fmt.Sprintf("%s-%d", l.name, l.made), cable: fmt.Sprintf("%sv%d", l.name, l.made),
		ip: fmt.Sprintf("%s%d", strings.TrimSuffix(l.ip, "1"), 10+l.made),
	}
	m.http = &http.Client{Timeout: 4 * time.Minute, Transport: &http.Transport{DialContext: m.dial, DisableKeepAlives: true}}
	l.t.Cleanup(func() { l.run("netns", "del", m.ns) }) // and its end of the cable, and so the other
	l.run("netns", "add", m.ns)
	l.run("link", "add", m.cable, "type", "veth", "peer", "name", "eth0", "netns", m.ns)
	l.run("link", "set", m.cable, "master", l.name, "up")
	l.run("-n", m.ns, "address", "add", m.ip+"/24", "dev", "eth0")
	for _, device := range []string{"lo", "eth0"} {
		l.run("-n", m.ns, "link", "set", device, "up")
	}
	if l.t.Failed() {
		l.t.FailNow()
	}
	return m
}

// within is the command that runs another on the machine.
func (m *box) within() []string { return []string{"ip", "netns", "exec", m.ns} }

// pull pulls the cable out, and plug puts it in again.
func (m *box) pull() { m.lan.t.Helper(); m.lan.run("link", "set", m.cable, "down") }
func (m *box) plug() { m.lan.t.Helper(); m.lan.run("link", "set", m.cable, "up") }

// dial connects from the machine, to the address of one.
func (m *box) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	// The namespace is the thread's: a socket is made in that of whoever makes it.
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer own.Close()
	defer func() {
		if rerr := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); rerr != nil {
			err = errors.Join(err, rerr) // the thread stays locked, and ends with its goroutine
			return
		}
		runtime.UnlockOSThread()
	}()
	there, err := os.Open("/run/netns/" + m.ns)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}
