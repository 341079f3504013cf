package serve_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// epochOf looks at a volume that is served.
func (p *plane) epochOf(t *testing.T, ref string) (epoch uint64, inUse bool) {
	t.Helper()
	v, err := p.Volume(t.Context(), ref)
	if err != nil || v.Epoch == nil {
		t.Fatalf("volume %+v, %v", v, err)
	}
	if (v.Status == serve.StatusInUse) != v.InUse {
		t.Errorf("in use: %v, status %s", v.InUse, v.Status)
	}
	return *v.Epoch, v.InUse
}

// settled waits until the data plane has noticed that everybody left.
func (p *plane) settled(t *testing.T, ref string) uint64 {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if epoch, inUse := p.epochOf(t, ref); !inUse {
			return epoch
		}
	}
	t.Fatal("still in use")
	return 0
}

func TestEpoch(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	other := p.create(t, "other", mib)
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})
	whole := t
	for _, tt := range []struct {
		name string
		want uint64
		do   func(t *testing.T)
	}{
		{"made", 0, func(*testing.T) {}},
		{"a reader", 0, func(t *testing.T) {
			t.Helper()
			c := dial(t, nbd.URI(v.Socket, "db@ro"))
			if epoch, inUse := p.epochOf(t, "db"); epoch != 0 || inUse {
				t.Errorf("read: epoch %d, in use %v", epoch, inUse)
			}
			closeClient(t, c)
		}},
		{"a writer with two connections", 1, func(t *testing.T) {
			t.Helper()
			c := dial(t, v.URI)
			if epoch, inUse := p.epochOf(t, "db"); epoch != 1 || !inUse {
				t.Errorf("connected: epoch %d, in use %v", epoch, inUse)
			}
			again := dial(t, v.URI)
			write(t, c, random(1, block), 0)
			closeClient(t, c)
			write(t, again, random(2, block), block)
			if epoch, inUse := p.epochOf(t, "db"); epoch != 1 || !inUse {
				t.Errorf("half gone: epoch %d, in use %v", epoch, inUse)
			}
			closeClient(t, again)
		}},
		{"a writer who is refused", 2, func(t *testing.T) {
			t.Helper()
			c := dial(t, v.URI)
			said, end := otherProcess(t, v.URI)
			end()
			if !strings.Contains(said, "refused") {
				t.Error(said)
			}
			closeClient(t, c)
		}},
		{"a restart", 2, func(t *testing.T) { t.Helper(); p = p.restart(whole) }},
		{"a reopen", 2, func(t *testing.T) {
			t.Helper()
			if _, err := p.ReopenVolume(t.Context(), "db"); err != nil {
				t.Error(err)
			}
		}},
		{"a snapshot", 2, func(t *testing.T) {
			t.Helper()
			p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "more"})
		}},
		{"a revert", 3, func(t *testing.T) {
			t.Helper()
			if err := p.RevertVolume(t.Context(), "db@s"); err != nil {
				t.Error(err)
			}
		}},
		{"an extension", 4, func(t *testing.T) {
			t.Helper()
			if got, err := p.ExtendVolume(t.Context(), "db", 2*mib); err != nil || got.InUse || *got.Epoch != 4 {
				t.Errorf("%+v, %v", got, err)
			}
		}},
		{"an extension that is refused", 4, func(t *testing.T) {
			t.Helper()
			if _, err := p.ExtendVolume(t.Context(), "db", mib); !errors.Is(err, serve.ErrInvalid) {
				t.Error(err)
			}
		}},
		{"a writer at a stop", 5, func(t *testing.T) {
			t.Helper()
			write(t, dial(t, v.URI), random(3, block), 0)
			p = p.restart(whole)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.do(t)
			if got := p.settled(t, "db"); got != tt.want {
				t.Errorf("epoch %d, want %d", got, tt.want)
			}
		})
	}
	if epoch, inUse := p.epochOf(t, other.ID); epoch != 0 || inUse {
		t.Errorf("another volume: epoch %d, in use %v", epoch, inUse)
	}
}

// A writer whose epoch cannot be recorded is told so and writes nothing.
func TestUnrecordedEpochRefusesWriter(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	dir := filepath.Dir(v.Path)
	block := filepath.Join(dir, "volume.json.tmp") // which the record is written as first
	if err := os.MkdirAll(filepath.Join(block, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := nbd.Dial(t.Context(), v.URI, nbd.ClientOptions{})
	if err == nil {
		t.Fatal("a writer was let in")
	}
	for _, want := range []string{"volume db takes no writer", dir, "db@ro"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the writer was told %q, which does not say %q", err, want)
		}
	}
	closeClient(t, dial(t, nbd.URI(v.Socket, "db@ro")))
	if got := p.settled(t, "db"); got != 0 {
		t.Errorf("epoch %d", got)
	}
	if err := os.RemoveAll(block); err != nil {
		t.Fatal(err)
	}
	closeClient(t, dial(t, v.URI))
	if got := p.settled(t, "db"); got != 1 {
		t.Errorf("epoch %d after the repair", got)
	}
}

// Nobody can tell the epoch of a volume that is not served.
func TestNoEpochWithoutVolume(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(v.Path, v.Path+".away"); err != nil {
		t.Fatal(err)
	}
	p = start(t, p.o)
	if got, err := p.Volume(t.Context(), "db"); err != nil || got.Status != serve.StatusError || got.Epoch != nil || got.InUse {
		t.Errorf("%+v, %v", got, err)
	}
}

// A file can be a volume of several hosts under one ID. To make it one changes
// nothing of it.
func TestSharedID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.img")
	content := random(7, mib)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	id := ""
	for host := range 2 {
		p := start(t, options(t))
		v, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "lun", File: file, ID: id})
		if err != nil || id != "" && v.ID != id {
			t.Fatalf("host %d: %+v, %v", host, v, err)
		}
		id = v.ID
		if got := p.settled(t, id); got != 0 {
			t.Errorf("host %d: epoch %d", host, got)
		}
		if err = p.stop(); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(file)
		if err != nil || sha256.Sum256(after) != sum {
			t.Errorf("host %d changed the file (%v)", host, err)
		}
	}
}

// Whoever sees an epoch and not in use, and both again later, sees the same data,
// however many clients come, write and go, and whatever else is done.
func TestEpochTellsOfEveryWrite(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})
	rounds, clients := 40, 3
	if testing.Short() {
		rounds = 15
	}
	var writing sync.WaitGroup
	for n := range clients {
		writing.Go(func() {
			for i := range rounds {
				c, err := nbd.Dial(t.Context(), v.URI, nbd.ClientOptions{})
				if err != nil {
					if strings.Contains(err.Error(), "being reverted") {
						continue
					}
					t.Error(err)
					return
				}
				err = c.WriteAt(t.Context(), fmt.Appendf(nil, "%d/%d", n, i), int64(n)*block, false)
				if err = errors.Join(err, c.Close()); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(i%5) * 5 * time.Millisecond)
			}
		})
	}
	writing.Go(func() {
		for range rounds {
			if err := p.RevertVolume(t.Context(), "db@s"); err != nil && !errors.Is(err, serve.ErrBusy) {
				t.Error(err)
			}
			time.Sleep(7 * time.Millisecond)
		}
	})
	var done atomic.Bool
	looked := make(chan int)
	go func() {
		equal := 0
		defer func() { looked <- equal }()
		type seen struct {
			epoch uint64
			sum   [sha256.Size]byte
		}
		var last *seen
		for !done.Load() {
			v1, err1 := p.Volume(t.Context(), "db")
			data, err := os.ReadFile(v.Path)
			v2, err2 := p.Volume(t.Context(), "db")
			if err = errors.Join(err1, err, err2); err != nil {
				t.Error(err)
				return
			}
			if v1.InUse || v2.InUse || *v1.Epoch != *v2.Epoch {
				continue
			}
			now := &seen{*v1.Epoch, sha256.Sum256(data)}
			if last != nil && last.epoch == now.epoch {
				if equal++; last.sum != now.sum {
					t.Errorf("the data changed, and the epoch stayed %d", now.epoch)
				}
			}
			last = now
		}
	}()
	writing.Wait()
	p.settled(t, "db")
	time.Sleep(20 * time.Millisecond)
	done.Store(true)
	t.Logf("%d looks found what the one before had found; epoch %d", <-looked, p.settled(t, "db"))
}
