package volume

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"golang.org/x/sys/unix"
)

// lun is a LUN of a size, as two hosts have it.
func lun(t *testing.T, size int64) (here, there string) {
	t.Helper()
	return needs.LUN(t, image(t, size, 0, "boot"))
}

func deviceVolume(t *testing.T, dev string) *Volume {
	t.Helper()
	v, err := Create(Options{}, filepath.Join(t.TempDir(), "vol"), Spec{Name: "vol", Path: dev, Device: true})
	must(t, err)
	t.Cleanup(func() { must(t, v.Close()) })
	return v
}

func all(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }

// What another host wrote is seen by a snapshot that asks for it and by the next
// writer, although this host had read what was there before.
func TestOtherHostsWrites(t *testing.T) {
	here, there := lun(t, 8*bs)
	a, b := deviceVolume(t, here), deviceVolume(t, there)
	round := byte('0')
	write := func(v *Volume) []byte {
		t.Helper()
		round++
		want := all(round, 8*bs)
		must(t, v.OpenForWriting())
		must(t, second(v.WriteAt(want, 0)))
		must(t, v.CloseForWriting())
		return want
	}
	expect := func(what string, r io.ReaderAt, want []byte) {
		t.Helper()
		if got := content(t, r, 8*bs); !bytes.Equal(got, want) {
			t.Fatalf("%s reads %q at the beginning and %q at the end, want %q", what, got[0], got[len(got)-1], want[0])
		}
	}
	for range 3 {
		old := write(a)
		expect("the writer", a, old)
		want := write(b)
		if expect("without a look, a", a, old); t.Failed() {
			t.Fatal("the devices share a cache, and this test shows nothing")
		}
		s := snap(t, a, SnapshotOptions{Temporary: true, Fresh: true})
		expect("a fresh snapshot", s, want)
		must(t, a.DeleteSnapshot(s.id))

		want = write(b)
		must(t, a.OpenForWriting())
		expect("a new writer", a, want)
		// What is written here is not lost by a look while it is dirty.
		must(t, second(a.WriteAt([]byte("mine"), bs)))
		copy(want[bs:], "mine")
		must(t, a.RefreshCache())
		s = snap(t, a, SnapshotOptions{Fresh: true})
		expect("a snapshot while there is a writer", s, want)
		must(t, a.CloseForWriting())
		must(t, a.DeleteSnapshot(s.id))
		must(t, b.OpenForWriting())
		expect("the other host", b, want)
		must(t, b.CloseForWriting())
	}
}

// A trim that was put off would hit what another host wrote meanwhile.
func TestOtherHostsWritesOutliveTrim(t *testing.T) {
	here, there := lun(t, 4*bs)
	a, b := deviceVolume(t, here), deviceVolume(t, there)
	s := snap(t, a, SnapshotOptions{})
	must(t, a.OpenForWriting())
	must(t, a.Trim(bs, 2*bs))
	if !a.deferred.any.Load() {
		t.Fatal("the trim was not put off, and this test shows nothing")
	}
	must(t, a.CloseForWriting())
	want := all('b', bs)
	must(t, b.OpenForWriting())
	must(t, second(b.WriteAt(want, bs)))
	must(t, b.CloseForWriting())
	must(t, a.DeleteSnapshot(s.id))
	must(t, b.RefreshCache())
	if got := content(t, b, 4*bs)[bs : 2*bs]; !bytes.Equal(got, want) {
		t.Fatalf("what the other host wrote reads %q", got[0])
	}
}

// A page that cannot be dropped keeps a writer out, and leaves the count as it is.
func TestPageInUse(t *testing.T) {
	old := evictPatience
	evictPatience = 10 * time.Millisecond
	t.Cleanup(func() { evictPatience = old })
	here, _ := lun(t, 4*bs)
	v := deviceVolume(t, here)
	if _, known, err := v.data.cached(0, bs); err != nil || !known {
		needs.Missing(t, "needs a kernel that tells what is cached, Linux 6.5: %v", err)
	}
	f, err := os.Open(here)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), bs, bs, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	_ = bytes.Count(m, []byte{1}) // has it mapped
	err = v.OpenForWriting()
	if !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), here) {
		t.Errorf("a page that is mapped: %v", err)
	}
	expectOpenings(t, v, 0, false)
	if _, err = SnapshotGroup(t.Context(), []*Volume{v}, []SnapshotOptions{{Fresh: true}}); !errors.Is(err, ErrStale) || len(v.Snapshots()) != 0 {
		t.Errorf("a snapshot: %v", err)
	}
	must(t, unix.Munmap(m))
	must(t, v.whileOpen(func() error { return nil }))
	expectOpenings(t, v, 1, false)
}

// The file of a file system that several hosts have is looked at anew too.
func TestSharedFile(t *testing.T) {
	file := image(t, 4*bs, 0, "boot")
	v, err := Create(Options{}, filepath.Join(t.TempDir(), "vol"), Spec{Name: "vol", Path: file})
	must(t, err)
	defer func() { must(t, v.Close()) }()
	if v.data.shared {
		needs.Missing(t, "needs a temporary folder on a file system of this host alone")
	}
	cached := func() uint64 {
		t.Helper()
		n, known, err := v.data.cached(0, 4*bs)
		if err != nil || !known {
			needs.Missing(t, "needs a kernel that tells what is cached, Linux 6.5: %v", err)
		}
		return n
	}
	for _, shared := range []bool{false, true} {
		v.data.shared = shared
		must(t, second(v.WriteAt(all('x', 4*bs), 0)))
		before := cached()
		must(t, v.whileOpen(func() error { return nil }))
		must(t, v.RefreshCache())
		if after := cached(); before == 0 || (after == 0) != shared {
			t.Errorf("shared %v: %d pages are cached, %d were", shared, after, before)
		}
		if got := content(t, v, 4*bs); !bytes.Equal(got, all('x', 4*bs)) {
			t.Error("content was lost")
		}
	}
}

func TestLocalFileSystems(t *testing.T) {
	for magic, want := range map[int64]bool{
		unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true, 0x2fc12fc1: true,
		int64(int32(-0x6edc97c2)): true, // btrfs, where the type is an int32
		unix.NFS_SUPER_MAGIC:      false, unix.SMB2_SUPER_MAGIC: false, unix.CIFS_SUPER_MAGIC: false, unix.CEPH_SUPER_MAGIC: false, unix.FUSE_SUPER_MAGIC: false,
		unix.OCFS2_SUPER_MAGIC: false, 0x01161970 /* GFS2 */ : false, unix.V9FS_MAGIC: false, 0x12345678: false,
	} {
		if local(magic) != want {
			t.Errorf("file system %#x: local is %v", magic, !want)
		}
	}
}

// fakePages is a page cache of which some pages are in use for a while, or read again
// as soon as they are dropped.
type fakePages struct {
	page   int64
	stale  map[int64]int // drops until it goes
	reread map[int64]int // times that a reader brings it back
	mute   bool
	fail   error
}

func (f *fakePages) drop(off, n int64) error {
	for p, left := range f.stale {
		if at := p * f.page; n == 0 || at >= off && at < off+n {
			if left--; left > 0 {
				f.stale[p] = left
			} else {
				delete(f.stale, p)
			}
		}
	}
	return f.fail
}

func (f *fakePages) cached(off, n int64) (count uint64, known bool, err error) {
	for p := range f.stale {
		if at := p * f.page; at >= off && at < off+n {
			count++
		}
	}
	for p, left := range f.reread {
		if at := p * f.page; at >= off && at < off+n && left > 0 {
			count++
			f.reread[p]--
		}
	}
	return count, !f.mute, nil
}

func TestEvict(t *testing.T) {
	page := int64(os.Getpagesize())
	for _, x := range []struct {
		name   string
		stale  map[int64]int
		reread map[int64]int
		mute   bool
		fail   error
		err    string
	}{
		{name: "nothing cached"},
		{name: "all goes", stale: map[int64]int{0: 1, 5: 1, 99: 1}},
		{name: "some stay a while", stale: map[int64]int{0: 9, 1: 1, 50: 7, 99: 12}},
		{name: "a reader is there", stale: map[int64]int{7: 4}, reread: map[int64]int{7: 10, 8: 3, 98: 12}},
		{name: "one stays", stale: map[int64]int{3: 1, 98: 1 << 40}, err: "somebody uses the page at"},
		{name: "the kernel does not tell", stale: map[int64]int{3: 2}, mute: true},
		{name: "the kernel fails", fail: syscall.EIO, err: syscall.EIO.Error()},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := &fakePages{page: page, stale: x.stale, reread: x.reread, mute: x.mute, fail: x.fail}
			patience := 10 * time.Second
			if x.err != "" {
				patience = 20 * time.Millisecond
			}
			err := evict(f, 99*page+512, patience)
			if (err != nil) != (x.err != "") || err != nil && !strings.Contains(err.Error(), x.err) {
				t.Fatal(err)
			}
			if err == nil && len(f.stale) > 0 {
				t.Fatalf("pages %v stay", f.stale)
			}
		})
	}
}
