package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// faulty counts what is sent over all connections of a disk, and does something to one
// message.
type faulty struct {
	at   int
	mode string
	stop context.CancelFunc // of the caller's context
	sent int
	dead bool // the process was killed: it connects no more
}

const (
	cutBefore = "killed before"
	cutAfter  = "killed after"
	refuse    = "refused"
	cancel    = "canceled"
	never     = "not at all"
)

var errKilled = errors.New("killed")

func (f *faulty) dial(ctx context.Context, socket string) (wire, error) {
	if f.dead {
		return nil, errKilled
	}
	w, err := dialUnix(ctx, socket)
	return faultyWire{w, f}, err
}

type faultyWire struct {
	wire
	f *faulty
}

func (w faultyWire) WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error) {
	f := w.f
	f.sent++
	if f.sent != f.at {
		return w.wire.WriteMsgUnix(b, oob, addr)
	}
	switch f.mode {
	case cutBefore:
		f.dead = true
		return 0, 0, errors.Join(errKilled, w.Close())
	case cutAfter:
		f.dead = true
		n, oobn, err = w.wire.WriteMsgUnix(b, oob, addr)
		return n, oobn, errors.Join(err, errKilled, w.Close())
	case refuse:
		// Another command of the same ID, with what was to go with it.
		b = bytes.Replace(b, []byte(`{"execute":"`), []byte(`{"execute":"no-`), 1)
		n, oobn, err = w.wire.WriteMsgUnix(b, oob, addr)
		return n - len("no-"), oobn, err
	case cancel:
		f.stop()
	}
	return w.wire.WriteMsgUnix(b, oob, addr)
}

// TestEveryStep: whatever ends a call, at whichever message, leaves nothing in qemu: at
// once, or if the process is killed, after the next sweep.
func TestEveryStep(t *testing.T) {
	g := newGuest(t, guestOptions{format: "qcow2"})
	g.write(1, 0, 3*block)
	g.snapshot(SnapshotOptions{ID: "base", Checkpoint: "c1"})
	g.drop("base")
	g.write(2, block, block)
	step := 1
	if testing.Short() {
		step = 4
	}
	for _, op := range []struct {
		name  string
		modes []string
		setup bool // there is a snapshot before
		do    func(context.Context, *Disk) error
	}{
		{"snapshot", []string{never, cutBefore, cutAfter, refuse, cancel}, false, func(ctx context.Context, d *Disk) error {
			_, err := d.Snapshot(ctx, SnapshotOptions{ID: "s", Checkpoint: "c2", Since: []string{"c1"}})
			return err
		}},
		{"verify", []string{never, cutAfter, cancel}, true, func(ctx context.Context, d *Disk) error { return d.Verify(ctx, "s") }},
		{"drop", []string{never, cutAfter}, true, func(ctx context.Context, d *Disk) error { return d.DropSnapshot(ctx, "s") }},
	} {
		t.Run(op.name, func(t *testing.T) {
			before := g.traces()
			for _, mode := range op.modes {
				for at := 1; ; at += step {
					if op.setup {
						g.snapshot(SnapshotOptions{ID: "s", Checkpoint: "c2", Since: []string{"c1"}})
					}
					ctx, stop := context.WithCancel(t.Context())
					f := &faulty{at: at, mode: mode, stop: stop}
					d := *g.disk
					d.dial = f.dial
					err := op.do(ctx, &d)
					stop()
					reached := f.sent >= at && mode != never
					if err != nil && !reached || errors.Is(err, ErrBroken) {
						t.Fatalf("%s %s message %d of %d: %v\n%s", op.name, mode, at, f.sent, err, g.printed())
					}
					g.settle(t, fmt.Sprintf("%s %s message %d: %v", op.name, mode, at, err), before, err != nil && !op.setup && !f.dead)
					if !reached {
						break
					}
				}
			}
		})
	}
}

// settle checks that nothing is left: at once, or after a sweep.
func (g *guest) settle(t *testing.T, what, before string, atOnce bool) {
	t.Helper()
	if now := g.traces(); atOnce && now != before {
		t.Fatalf("%s, before:\n%safter:\n%s", what, before, now)
	}
	keepFirst := func(name string) bool { return name == "c1" }
	if err := g.disk.Sweep(t.Context(), func(string) bool { return false }, keepFirst); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if now := g.traces(); now != before {
		t.Fatalf("%s, before:\n%safter the sweep:\n%s", what, before, now)
	}
}

// traces is what qemu has that may be ours, and what it has at all.
func (g *guest) traces() string {
	g.tb.Helper()
	m, err := openMonitor(g.tb.Context(), filepath.Join(g.dir, "guest"), dialUnix, greetingLimit)
	if err != nil {
		g.tb.Fatal(err)
	}
	v, err := look(g.tb.Context(), m)
	if err != nil {
		g.tb.Fatal(err)
	}
	var jobs []struct{ ID string }
	if err = m.call(g.tb.Context(), "query-jobs", nil, &jobs); err != nil {
		g.tb.Fatal(err)
	}
	if err = m.Close(); err != nil {
		g.tb.Fatal(err)
	}
	var b strings.Builder
	for _, n := range v.nodes {
		fmt.Fprintf(&b, "node %s %s, below it %s\n", n.Name, n.Driver, v.files[n.Name])
		for _, m := range n.Bitmaps {
			fmt.Fprintf(&b, "\tbitmap %s\n", m.Name)
		}
	}
	for _, d := range v.devices {
		if d.Inserted != nil {
			fmt.Fprintf(&b, "device %s on %s\n", d.qom(), d.Inserted.Name)
		}
	}
	fmt.Fprintf(&b, "files %v\n", v.files)
	fmt.Fprintf(&b, "exports %v, files %v, jobs %v\n", v.exports, v.fdsets, jobs)
	entries, err := os.ReadDir(g.disk.Dir)
	if err != nil {
		g.tb.Fatal(err)
	}
	fmt.Fprintf(&b, "in the folder: %v\n", entries)
	return b.String()
}

// scripted swallows what is sent.
type scripted struct{ net.Conn }

func (scripted) WriteMsgUnix(b, oob []byte, _ *net.UnixAddr) (n, oobn int, err error) {
	return len(b), len(oob), nil
}

func (scripted) SetDeadline(time.Time) error { return nil }

func newReader(p []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(p)) }
