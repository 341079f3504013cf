package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"golang.org/x/sys/unix"
)

const mmapEnv = "CAIRN_TEST_MMAP"

// TestMain lets the test binary act as the other process that tests need: page
// faults on a mount of the same process can stop its whole runtime.
func TestMain(m *testing.M) {
	if name := os.Getenv(mmapEnv); name != "" {
		if err := copyMapped(os.Stdout, name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func copyMapped(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_, err = w.Write(p)
	return errors.Join(err, unix.Munmap(p))
}

func needFuse(tb testing.TB) {
	tb.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		needs.Missing(tb, "needs /dev/fuse")
	}
	f.Close()
	if os.Geteuid() != 0 {
		needs.Tool(tb, "fusermount3", "fuse3")
	}
}

// mounted is a mount for the time of a test.
type mounted struct {
	dir    string
	cancel func()
	done   chan error

	mu     sync.Mutex
	errors []string
}

func mount(tb testing.TB, s Source, change func(*Options)) *mounted {
	tb.Helper()
	needFuse(tb)
	ctx, cancel := context.WithCancel(context.Background())
	m := &mounted{dir: tb.TempDir(), cancel: cancel, done: make(chan error, 1)}
	o := Options{Dir: m.dir, Source: s, Refresh: time.Nanosecond, Failed: func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.errors = append(m.errors, err.Error())
	}}
	if change != nil {
		change(&o)
	}
	ready := make(chan struct{})
	go func() { m.done <- Mount(ctx, o, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-m.done:
		cancel()
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.end(tb) })
	return m
}

// end unmounts and checks that nothing is left.
func (m *mounted) end(tb testing.TB) {
	tb.Helper()
	if m.done == nil {
		return
	}
	m.cancel()
	if err := <-m.done; err != nil {
		tb.Error(err)
	}
	m.done = nil
	if _, ok, err := findMount(m.dir); ok || err != nil {
		tb.Errorf("still mounted (%v)", err)
	}
}

func one(img func() *mapImage) *mapSource {
	s := newSource()
	s.add(Entry{ID: "id-1", Name: "first", Volume: "vm", VolumeID: "v1", Created: noon}, img)
	return s
}

func (m *mounted) disk() string { return filepath.Join(m.dir, "vm", "latest", "disk.raw") }

func TestTree(t *testing.T) {
	s := one(sparse)
	s.add(Entry{ID: "id-2", Name: "second", Volume: "vm", VolumeID: "v1", Created: noon.Add(time.Hour)}, sparse)
	s.add(Entry{ID: "id-3", Volume: "odd name/", VolumeID: "v2", Created: noon}, sparse)
	m := mount(t, s, nil)
	var got []string
	err := filepath.WalkDir(m.dir, func(p string, _ os.DirEntry, err error) error {
		got = append(got, strings.TrimPrefix(p, m.dir))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"",
		"/odd%20name%2F", "/odd%20name%2F/2026-03-04T12-30-15Z", "/odd%20name%2F/2026-03-04T12-30-15Z/disk.raw", "/odd%20name%2F/latest",
		"/vm", "/vm/2026-03-04T12-30-15Z", "/vm/2026-03-04T12-30-15Z/disk.raw",
		"/vm/2026-03-04T13-30-15Z", "/vm/2026-03-04T13-30-15Z/disk.raw", "/vm/latest",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if link, err := os.Readlink(filepath.Join(m.dir, "vm", "latest")); link != "2026-03-04T13-30-15Z" || err != nil {
		t.Errorf("latest -> %q, %v", link, err)
	}

	// A newer backup appears, and latest follows.
	s.add(Entry{ID: "id-4", Volume: "vm", VolumeID: "v1", Created: noon.Add(2 * time.Hour)}, sparse)
	eventually(t, func() bool {
		link, err := os.Readlink(filepath.Join(m.dir, "vm", "latest"))
		return err == nil && link == "2026-03-04T14-30-15Z"
	})
}

// eventually waits for what the kernel or a timer does in its own time.
func eventually(tb testing.TB, ok func() bool) {
	tb.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			tb.Fatal("does not happen")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestAttributes(t *testing.T) {
	m := mount(t, one(sparse), nil)
	var st unix.Stat_t
	if err := unix.Stat(m.disk(), &st); err != nil {
		t.Fatal(err)
	}
	img := sparse()
	blocks := int64(1<<20+3<<20+4096+1000+511) / 512
	if st.Size != img.size || st.Blocks != blocks || st.Mtim.Sec != noon.Unix() || st.Mode != unix.S_IFREG|0o400 || int(st.Uid) != os.Geteuid() {
		t.Errorf("size %d blocks %d mtime %d mode %o uid %d; want size %d blocks %d", st.Size, st.Blocks, st.Mtim.Sec, st.Mode, st.Uid, img.size, blocks)
	}
	for name, want := range map[string]string{xattrID: "id-1", xattrName: "first"} {
		buf := make([]byte, 100)
		n, err := unix.Getxattr(m.disk(), name, buf)
		if err != nil || string(buf[:max(n, 0)]) != want {
			t.Errorf("xattr %s = %q, %v", name, buf[:max(n, 0)], err)
		}
	}
	if _, err := unix.Getxattr(m.disk(), "user.none", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("unknown attribute: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.dir, &fs); err != nil || fs.Blocks != uint64(img.size+4095)/4096 || fs.Bfree != 0 || fs.Files != 1 {
		t.Errorf("statfs %+v, %v", fs, err)
	}
	for _, flag := range []int{os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC} {
		if f, err := os.OpenFile(m.disk(), flag, 0); err == nil {
			f.Close()
			t.Errorf("open with %#x succeeds", flag)
		}
	}
	if err := os.Mkdir(filepath.Join(m.dir, "x"), 0o700); err == nil {
		t.Error("mkdir succeeds")
	}
}

func TestRandomReads(t *testing.T) {
	m := mount(t, one(sparse), nil)
	f, err := os.Open(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img := sparse()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 200 {
				off := r.Int64N(img.size)
				if r.IntN(2) == 0 { // near a border
					b := img.data[r.IntN(len(img.data))]
					off = max(0, b.end-r.Int64N(5000))
				}
				p := make([]byte, 1+r.IntN(300000))
				n, err := f.ReadAt(p, off)
				want := make([]byte, max(0, min(int64(len(p)), img.size-off)))
				img.fillAt(want, off)
				if n != len(want) || (err != nil && !errors.Is(err, io.EOF)) || !bytes.Equal(p[:n], want) {
					t.Errorf("read %d at %d: %d bytes, %v", len(p), off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func whole(img *mapImage) []byte {
	p := make([]byte, img.size)
	img.fillAt(p, 0)
	return p
}

func TestMmap(t *testing.T) {
	m := mount(t, one(sparse), nil)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), mmapEnv+"="+m.disk())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, whole(sparse())) {
		t.Error("other bytes through a mapping")
	}
}

func TestLseek(t *testing.T) {
	m := mount(t, one(sparse), nil)
	f, err := os.Open(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img := sparse()
	for _, c := range []struct {
		off    int64
		whence int
		want   int64
	}{
		{0, seekData, 0},
		{0, seekHole, 1 << 20},
		{1 << 20, seekData, 10 << 20},
		{1 << 20, seekHole, 1 << 20},
		{11 << 20, seekHole, 13<<20 + 4096},
		{14 << 20, seekData, 64 << 20},
		{64 << 20, seekHole, img.size},
		{10, io.SeekEnd, img.size + 10},
	} {
		if got, err := f.Seek(c.off, c.whence); got != c.want || err != nil {
			t.Errorf("lseek(%d, %d) = %d, %v; want %d", c.off, c.whence, got, err, c.want)
		}
	}
	if _, err := f.Seek(img.size, seekData); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("SEEK_DATA at the end: %v", err)
	}
}

func TestSparseCopy(t *testing.T) {
	needs.Tool(t, "cp", "coreutils")
	m := mount(t, one(sparse), nil)
	dst := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.CommandContext(t.Context(), "cp", "--sparse=always", m.disk(), dst).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, whole(sparse())) {
		t.Error("other bytes in the copy")
	}
	var st unix.Stat_t
	if err := unix.Stat(dst, &st); err != nil || st.Blocks*512 > 8<<20 {
		t.Errorf("the copy takes %d bytes, %v", st.Blocks*512, err)
	}
}

func TestImagesAreShared(t *testing.T) {
	s := one(sparse)
	m := mount(t, s, func(o *Options) { o.Idle = 50 * time.Millisecond })
	var files []*os.File
	for range 5 {
		f, err := os.Open(m.disk())
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if opened, open := s.state("id-1"); opened != 1 || open != 1 {
		t.Errorf("%d opened, %d open", opened, open)
	}
	for _, f := range files {
		f.Close()
	}
	eventually(t, func() bool { _, open := s.state("id-1"); return open == 0 })
	if f, err := os.Open(m.disk()); err != nil { // and again
		t.Error(err)
	} else {
		f.Close()
	}
}

func TestBoundedImages(t *testing.T) {
	s := newSource()
	for i := range 3 {
		s.add(Entry{ID: fmt.Sprint("id-", i), Volume: fmt.Sprint("vm", i), VolumeID: strconv.Itoa(i), Created: noon}, sparse)
	}
	m := mount(t, s, func(o *Options) { o.MaxImages = 2 })
	name := func(i int) string { return filepath.Join(m.dir, fmt.Sprint("vm", i), "latest", "disk.raw") }
	a, err := os.Open(name(0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Open(name(1))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := os.Open(name(2)); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("third image: %v, %v", c, err)
	}
	b.Close()
	eventually(t, func() bool {
		c, err := os.Open(name(2))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	a.Close()
}

func TestReadError(t *testing.T) {
	m := mount(t, one(func() *mapImage { i := sparse(); i.fail = errors.New("two many stores are down"); return i }), nil)
	if _, err := os.ReadFile(m.disk()); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.errors) == 0 || !strings.Contains(m.errors[0], "two many stores are down") {
		t.Errorf("told %q", m.errors)
	}
}

func TestListError(t *testing.T) {
	s := one(sparse)
	s.listErr = errors.New("no agent")
	m := mount(t, s, nil)
	if _, err := os.ReadDir(m.dir); !errors.Is(err, syscall.EIO) {
		t.Errorf("list: %v", err)
	}
	s.mu.Lock()
	s.listErr = nil
	s.mu.Unlock()
	if _, err := os.Stat(m.disk()); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	s.listErr = errors.New("no agent again")
	s.mu.Unlock()
	if _, err := os.ReadDir(m.dir); err != nil {
		t.Errorf("the last listing is not used: %v", err)
	}
}

func TestUnmountWhileBusy(t *testing.T) {
	s := one(func() *mapImage { i := sparse(); i.block = make(chan struct{}); return i })
	m := mount(t, s, func(o *Options) { o.Grace = 100 * time.Millisecond })
	f, err := os.Open(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := make(chan error, 1)
	go func() { _, err := f.ReadAt(make([]byte, 10), 0); read <- err }()
	eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.opened["id-1"]) == 1 && s.opened["id-1"][0].reads.Load() > 0
	})
	m.end(t)
	if err := <-read; err == nil {
		t.Error("the blocked read succeeds")
	}
	if _, open := s.state("id-1"); open != 0 {
		t.Error("the image is still open")
	}
}

func TestUnmountFromOutside(t *testing.T) {
	m := mount(t, one(sparse), nil)
	f, err := os.Open(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), m.dir, false); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unmount of a busy mount: %v", err)
	}
	f.Close()
	eventually(t, func() bool { return Unmount(t.Context(), m.dir, false) == nil })
	if err := <-m.done; err != nil {
		t.Error(err)
	}
	m.done = nil
}

// A mount that was detached leaves alone what is mounted in its place.
func TestDetached(t *testing.T) {
	m := mount(t, one(sparse), func(o *Options) { o.Grace = 100 * time.Millisecond })
	if os.Geteuid() != 0 {
		t.Skip("only root can mount something else")
	}
	f, err := os.Open(m.disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", m.dir, "tmpfs", 0, "size=64k"); err != nil {
		needs.Missing(t, "needs a tmpfs: %v", err)
	}
	m.cancel()
	if err := <-m.done; err == nil || !strings.Contains(err.Error(), "detached") {
		t.Errorf("end of a mount that is detached and busy: %v", err)
	}
	m.done = nil
	if x, ok, err := findMount(m.dir); err != nil || !ok || x.kind != "tmpfs" {
		t.Fatalf("in its place there is %+v, %v, %v", x, ok, err)
	}
	if err := unix.Unmount(m.dir, 0); err != nil {
		t.Error(err)
	}
}

func TestFuserMount(t *testing.T) {
	needs.Tool(t, "fusermount3", "fuse3")
	m := mount(t, one(sparse), func(o *Options) { o.FuserMount = true })
	got, err := os.ReadFile(m.disk())
	if err != nil || !bytes.Equal(got, whole(sparse())) {
		t.Errorf("read through fusermount3: %v", err)
	}
}

func TestRefusedMountPoints(t *testing.T) {
	needFuse(t)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := mount(t, one(sparse), nil)
	for _, c := range []struct{ name, dir, want string }{
		{"missing", filepath.Join(full, "none"), "does not exist: make it with mkdir"},
		{"file", filepath.Join(full, "x"), "is not a directory"},
		{"full", full, "is not empty"},
		{"twice", m.dir, "mounted on " + m.dir + " already"},
	} {
		err := Mount(t.Context(), Options{Dir: c.dir, Source: newSource()}, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := Unmount(t.Context(), full, false); err == nil || !strings.Contains(err.Error(), "no backups are mounted") {
		t.Errorf("unmount of what is none: %v", err)
	}
}

// A mount point whose process died is explained and can be freed.
func TestStaleMountPoint(t *testing.T) {
	needFuse(t)
	if os.Geteuid() != 0 {
		needs.Missing(t, "needs root to fake a dead mount")
	}
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("cairn", dir, "fuse.cairn", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if err := Mount(t.Context(), Options{Dir: dir, Source: newSource()}, nil); err == nil || !strings.Contains(err.Error(), "whose process has died") {
		t.Errorf("mount on a dead mount: %v", err)
	}
	if err := Unmount(t.Context(), dir, false); err != nil {
		t.Error(err)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

func TestParseMounts(t *testing.T) {
	table := `22 1 0:20 / /proc rw - proc proc rw
30 1 0:44 / /mnt/a\040b ro,nosuid shared:5 - fuse.cairn cairn ro,user_id=0
31 1 0:45 / /mnt/x rw - fuse.cairn cairn ro
32 1 0:46 / /mnt/x rw master:1 - tmpfs tmpfs rw
`
	if m, ok := parseMounts(table, "/mnt/a b"); !ok || !m.cairn() || m.minor != 44 {
		t.Errorf("%+v %v", m, ok)
	}
	if m, ok := parseMounts(table, "/mnt/x"); !ok || m.cairn() {
		t.Errorf("%+v %v", m, ok)
	}
	if _, ok := parseMounts(table, "/mnt"); ok {
		t.Error("found what is not there")
	}
}
