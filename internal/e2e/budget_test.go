package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/nbd"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// TestBudgets holds Cairn to what ARCHITECTURE.md §9 promises: an incremental
// after scattered writes reads and stores what changed, counted at the process
// that owns the volume, and both processes keep within their memory, for a
// volume of 4 GiB and for a sparse one of 4 TiB with as much data. Times are
// logged, not judged.
func TestBudgets(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	h := newHost(t)
	b := &budget{host: h, rng: seed(t)}
	small := b.filled("small", 4*gib, 1024)
	full := b.backup("small", agent.CreateBackup{Volume: "small"})
	b.scattered(small, full.ID)
	b.filled("sparse", 4*tib, 1024)
	sparse := b.backup("sparse", agent.CreateBackup{Volume: "sparse"})
	if sparse.BytesRead > full.BytesRead+64*mib {
		t.Errorf("of the 4 TiB volume %d bytes were read, of the same data in 4 GiB %d", sparse.BytesRead, full.BytesRead)
	}
	t.Logf("full backup of 1 GiB of data: %v in a volume of 4 GiB, %v in one of 4 TiB", full.Duration, sparse.Duration)

	file := h.path("restored.img")
	b.restore(sparse.ID, file)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*process{"agent": h.agent, "serve": h.serve} {
		limit := int64(192 * mib)
		if name == "serve" {
			limit = 64*mib + 5*4*mib // 4 TiB and a little
		}
		peak := b.status(p, "VmHWM")
		t.Logf("peak memory of %s: %d MiB of %d", name, peak/mib, limit/mib)
		if peak > limit {
			t.Errorf("%s took %d MiB at its peak, its budget is %d", name, peak/mib, limit/mib)
		}
	}
}

// budget is the state of TestBudgets.
type budget struct {
	*host
	rng *rand.Rand
}

// filled makes a volume and writes pieces of 1 MiB at equal distances.
func (b *budget) filled(name string, size, pieces int64) agent.Volume {
	b.t.Helper()
	v, err := b.control.CreateVolume(b.t.Context(), agent.CreateVolume{Name: name, Size: size})
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(v, func(ctx context.Context, c *nbd.Client) error {
		p := make([]byte, mib)
		for i := range pieces {
			fill(p, b.rng)
			if err := c.WriteAt(ctx, p, i*(size/pieces), false); err != nil {
				return err
			}
		}
		return c.Flush(ctx)
	})
	return v
}

// scattered writes 4 KiB at random places, 1 % of the volume, and makes an
// incremental backup of it.
func (b *budget) scattered(v agent.Volume, parent string) {
	t := b.t
	dirty := map[int64]bool{}
	b.write(v, func(ctx context.Context, c *nbd.Client) error {
		p := make([]byte, 4096)
		for range v.Size / 100 / 4096 {
			fill(p, b.rng)
			off := b.rng.Int64N(v.Size/4096) * 4096
			dirty[off/blockmap.DefaultBlockSize] = true
			if err := c.WriteAt(ctx, p, off, false); err != nil {
				return err
			}
		}
		return c.Flush(ctx)
	})
	compressed := b.compressed(v, dirty)

	before := b.readBy(b.serve)
	rec := b.backup(v.Name, agent.CreateBackup{Volume: v.Name, Incremental: true})
	atVolume := b.readBy(b.serve) - before

	changed := int64(len(dirty)) * blockmap.DefaultBlockSize
	audit := max(64*blockmap.DefaultBlockSize, changed/20)
	t.Logf("incremental: %d bytes in changed blocks, read %d, audited %d (%d at the volume), stored %d of %d compressed",
		changed, rec.BytesRead, rec.BytesAudited, atVolume, rec.BytesStored, compressed)
	if !rec.Incremental || rec.Parent != parent || rec.FullCompareReason != "" {
		t.Errorf("the backup is no plain incremental: %+v", rec)
	}
	if rec.BytesRead != changed {
		t.Errorf("%d bytes read, %d are in changed blocks", rec.BytesRead, changed)
	}
	if rec.BytesAudited == 0 || rec.BytesAudited > audit {
		t.Errorf("%d bytes audited, want some and at most %d", rec.BytesAudited, audit)
	}
	// What the process read beside the data are requests and its own records.
	if most := rec.BytesRead + rec.BytesAudited + 4*mib; atVolume > most {
		t.Errorf("%d bytes read at the volume, want at most %d", atVolume, most)
	}
	leaves := v.Size / (128 * blockmap.DefaultBlockSize)
	if most := compressed*11/10 + leaves*4096; rec.BytesStored > most {
		t.Errorf("%d bytes stored, want at most %d", rec.BytesStored, most)
	}
}

// compressed is the size of blocks of the volume after zstd, each by itself.
func (b *budget) compressed(v agent.Volume, blocks map[int64]bool) (sum int64) {
	b.t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(v, func(ctx context.Context, c *nbd.Client) error {
		p := make([]byte, blockmap.DefaultBlockSize)
		var out []byte
		for i := range blocks {
			if err := c.ReadAt(ctx, p, i*blockmap.DefaultBlockSize); err != nil {
				return err
			}
			out = enc.EncodeAll(p, out[:0])
			sum += int64(len(out))
		}
		return nil
	})
	return sum
}

// readBy is the number of bytes that a process has read so far.
func (b *budget) readBy(p *process) int64 { return b.procField(p, "io", "rchar") }

// status is a field of a process's status that is given in KiB, in bytes.
func (b *budget) status(p *process, field string) int64 { return b.procField(p, "status", field) << 10 }

func (b *budget) procField(p *process, file, field string) int64 {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return n
		}
	}
	b.t.Fatalf("/proc/%d/%s has no %s", p.cmd.Process.Pid, file, field)
	return 0
}
