package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
)

// mapped is one range of a map that nbdinfo or qemu-img prints as JSON.
type mapped struct {
	Offset, Length int64
	Type           uint32 // nbdinfo's
	Data           bool   // qemu-img's
}

// blockMap is what a tool's map says of each block; f is the state of a range, which
// begins and ends with blocks.
func (s *toolUse) blockMap(out string, size int64, f func(m mapped) bool) []bool {
	s.Helper()
	var l []mapped
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		s.Fatalf("%v in\n%s", err, out)
	}
	states, end := []bool{}, int64(0)
	for _, m := range l {
		if m.Offset != end {
			s.Fatalf("a gap at %d in\n%s", end, out)
		}
		if end += m.Length; end%toolBlock != 0 && end != size {
			s.Fatalf("%d is inside a block in\n%s", end, out)
		}
		for int64(len(states)) < blocks(end) {
			states = append(states, f(m))
		}
	}
	if end != size {
		s.Fatalf("the map ends at %d of %d:\n%s", end, size, out)
	}
	return states
}

// sameBlocks compares states of blocks.
func (s *toolUse) sameBlocks(what string, got, want []bool) {
	s.Helper()
	for i := range want {
		if got[i] != want[i] {
			s.Errorf("%s: block %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func dirty(m mapped) bool { return m.Type == 1 }

// useNbdinfo: it says what an export is, and what changed since a checkpoint.
func useNbdinfo(s *toolUse) {
	uri, ro := s.uri(s.disk), s.uri(s.disk.as("@ro"))
	s.has(s.run("nbdinfo", uri), fmt.Sprintf("export-size: %d", diskSize), s.packets, "base:allocation", "is_read_only: false",
		"can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true", "can_fast_zero: true", "can_df: true", "can_cache: true", "can_multi_conn: true",
		"block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432")
	if size := strings.TrimSpace(s.run("nbdinfo", "--size", uri)); size != strconv.Itoa(diskSize) {
		s.Errorf("the size is %s", size)
	}
	list := s.disk.as("")
	list.tcp = strings.TrimSuffix(list.tcp, list.name)
	s.has(s.run("nbdinfo", "--list", s.uri(list)), `export="`+s.disk.name+`":`, `export="`+s.disk.name+`@ro":`)
	s.run("nbdinfo", "--is", "readonly", ro)
	s.run("nbdinfo", "--can", "multi-conn", ro)
	s.run("nbdinfo", "--can", "write", uri)
	if err := s.command(s.T, "nbdinfo", "--is", "readonly", uri).Run(); err == nil {
		s.Error("the volume is read-only")
	}
	s.has(s.run("nbdinfo", "--map", uri), fmt.Sprintf("0 %d 3 hole,zero", diskSize))
	s.has(s.run("nbdinfo", "--map", "--totals", uri), fmt.Sprintf("%d 100.0%% 3 hole,zero", diskSize))

	// Each checkpoint has the writes made since, and no others.
	var names []string
	var changed [][]bool
	for i := range 3 {
		names = append(names, fmt.Sprintf("third.party-%d", i))
		changed = append(changed, make([]bool, blocks(diskSize)))
		if _, err := s.control.CreateCheckpoint(s.Context(), s.disk.name, names[i]); err != nil {
			s.Fatal(err)
		}
		s.qemu("qemu-io", s.changes(changed), s.node(s.disk))
	}
	for i, name := range names {
		for what, uri := range map[string]string{"volume": uri, "@ro": ro} {
			got := s.run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+name, uri)
			s.sameBlocks(what+" since "+name, s.blockMap(got, diskSize, dirty), changed[i])
		}
	}
}

// changes are commands for qemu-io of each kind that changes a disk, which are noted in
// all maps.
func (s *toolUse) changes(notes [][]bool) (args []string) {
	for range 6 {
		n := 512 * (1 + s.rng.Int64N(300))
		off := 512 * s.rng.Int64N((diskSize-n)/512+1)
		verb := []string{"write -P 5", "write -z", "write -z -u", "discard", "write -f -P 6"}[s.rng.IntN(5)]
		args = append(args, "-c", fmt.Sprintf("%s %d %d", verb, off, n))
		for _, note := range notes {
			for b := off / toolBlock; b < blocks(off+n); b++ {
				note[b] = true
			}
		}
	}
	return args
}

// useQemuImg: what it writes is there, its map tells data from holes, and it finds what
// differs.
func useQemuImg(s *toolUse) {
	ref, data := s.noise(s.T, 1)
	s.qemu("qemu-img", []string{"convert", "-n", "--target-image-opts", "-m", "4", "-W"}, fileNode(ref), s.node(s.disk))
	s.has(s.qemu("qemu-img", []string{"compare"}, s.node(s.disk), fileNode(ref)), "identical")
	out := s.qemu("qemu-img", []string{"map", "--output=json"}, s.node(s.disk))
	s.sameBlocks("map", s.blockMap(out, diskSize, func(m mapped) bool { return m.Data }), data)
	s.has(s.qemu("qemu-img", []string{"info"}, s.node(s.disk.as("@ro"))), fmt.Sprintf("(%d bytes)", diskSize))

	s.qemu("qemu-io", []string{"-c", "write -P 1 1M 512"}, s.node(s.disk))
	args := append(append([]string{"compare"}, s.object...), "--image-opts", s.node(s.disk.as("@ro")), fileNode(ref))
	b, err := s.command(s.T, "qemu-img", args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(string(b), "mismatch at offset 1048576!") {
		s.Errorf("compare with what has changed: %v\n%s", err, b)
	}
}

// useQemuIO: each kind of request does what it says, one by one and many at once, and what
// one writer left the next one's readers find.
func useQemuIO(s *toolUse) {
	s.qemu("qemu-io", []string{
		"-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", "-c", "flush", "-c", "write -z 0 64k", "-c", "discard 64k 64k",
		"-c", "read -P 0 0 128k", "-c", "read -P 7 128k 896k", "-c", "write -f -P 9 7M 1M", "-c", "read -P 9 7M 1M", "-c", "write -z -u 512 1536",
		"-c", "write -P 4 8M 512", "-c", "read -P 4 8M 512", // the last sector
		"-c", "aio_write -P 1 4M 1M", "-c", "aio_write -P 2 5M 1M", "-c", "aio_write -z 6M 1M", "-c", "aio_flush",
		"-c", "read -P 1 4M 1M", "-c", "read -P 2 5M 1M", "-c", "read -P 0 6M 1M",
	}, s.node(s.disk))
	for i := range 4 { // one behind the other: a volume has one writer
		at, pattern := fmt.Sprintf("%dM", 2*i), strconv.Itoa(20+i)
		s.qemu("qemu-io", []string{"-c", "write -P " + pattern + " " + at + " 2M", "-c", "flush", "-c", "read -P " + pattern + " " + at + " 2M"}, s.node(s.disk))
	}
	out := s.qemu("qemu-io", []string{"-r", "-c", "read -P 20 0 2M", "-c", "read -P 21 2M 2M", "-c", "read -P 22 4M 2M", "-c", "read -P 23 6M 2M"}, s.node(s.disk.as("@ro")))
	if strings.Contains(out, "failed") {
		s.Error(out)
	}
	if out, err := s.command(s.T, "qemu-io", append(append([]string{}, s.object...), "-c", "write 0 512", "--image-opts", s.node(s.disk.as("@ro")))...).CombinedOutput(); err == nil {
		s.Errorf("a read-only export was opened for writing:\n%s", out)
	}
}

// useNbdcopy: over one connection and over four what arrives is what was sent, in both
// directions, and holes take the place of what was there.
func useNbdcopy(s *toolUse) {
	for i, connections := range []string{"--connections=1", "--connections=4"} {
		ref, _ := s.noise(s.T, uint64(2+i))
		out := filepath.Join(s.TempDir(), "out")
		s.run("nbdcopy", "--flush", connections, "--requests=64", ref, s.uri(s.disk))
		s.run("nbdcopy", connections, s.uri(s.disk.as("@ro")), out)
		s.same("nbdcopy "+connections, out, ref)
		s.run("nbdcopy", "--synchronous", "--request-size=65536", s.uri(s.disk.as("@ro")), out)
		s.same("nbdcopy --synchronous", out, ref)
	}
	other := s.volume(s.T, s.disk.name+"-copy", diskSize)
	s.run("nbdcopy", "--connections=4", s.uri(s.disk.as("@ro")), s.uri(other))
	s.qemu("qemu-img", []string{"compare"}, s.node(s.disk), s.node(other))
}

// useNbdfuse: an export is a file, for reading and for writing.
func useNbdfuse(s *toolUse) {
	ref, _ := s.noise(s.T, 5)
	s.run("nbdcopy", ref, s.uri(s.disk))
	s.mount(s.disk.as("@ro"), func(file string) {
		s.same("nbdfuse", file, ref)
		if out, err := s.command(s.T, "dd", "if="+ref, "of="+file, "conv=notrunc", "count=1").CombinedOutput(); err == nil {
			s.Errorf("what is read-only was written to:\n%s", out)
		}
	})
	changed, _ := s.noise(s.T, 6)
	s.mount(s.disk, func(file string) {
		s.run("dd", "if="+changed, "of="+file, "conv=notrunc,fsync", "bs=100000")
		s.same("nbdfuse after writing", file, changed)
	}, "--connections=4")
	s.qemu("qemu-img", []string{"compare"}, s.node(s.disk), fileNode(changed))
}

// mount has an export as a file while f runs.
func (s *toolUse) mount(x *exported, f func(file string), args ...string) {
	s.Helper()
	dir, pid := s.TempDir(), filepath.Join(s.TempDir(), "pid")
	cmd := s.command(s.T, "nbdfuse", append(args, "-P", pid, filepath.Join(dir, "disk"), s.plain(x))...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		select {
		case err := <-done:
			return false, fmt.Errorf("it ended: %w\n%s", err, out.String())
		default:
			_, err := os.Stat(pid)
			return err == nil, nil
		}
	})
	if err != nil {
		s.Fatalf("nbdfuse: %v", err)
	}
	f(filepath.Join(dir, "disk"))
	s.run("fusermount3", "-u", dir)
	if err := <-done; err != nil {
		s.Errorf("nbdfuse ended in %v\n%s", err, out.String())
	}
}

// useFio: what it wrote, at random and in order, is what it reads, by one job and by four
// at once, each on a connection of its own.
func useFio(s *toolUse) {
	for _, jobs := range [][]string{{"--size=8m"}, {"--size=2m", "--offset_increment=2m", "--numjobs=4"}} {
		args := append([]string{
			"--name=v", "--ioengine=nbd", "--uri=" + s.plain(s.disk), "--rw=randwrite", "--bsrange=512-256k", "--blockalign=512",
			"--iodepth=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0", fmt.Sprintf("--randseed=%d", s.seed%1000),
		}, jobs...)
		s.run("fio", args...)
	}
	s.run("fio", "--name=v", "--ioengine=nbd", "--uri="+s.plain(s.disk), "--rw=write", "--bs=2m", "--size=8m", "--iodepth=4",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0")
}

// useSnapshot: a snapshot stays what the volume was, and nothing changed in it since the
// checkpoint that was made with it.
func useSnapshot(s *toolUse) {
	ref, _ := s.noise(s.T, 7)
	s.run("nbdcopy", ref, s.uri(s.disk))
	made, err := s.data.CreateSnapshots(s.Context(), serve.CreateSnapshots{Volumes: []string{s.disk.name}, Name: "then", Checkpoints: []string{"b1"}})
	if err != nil {
		s.Fatal(err)
	}
	then := &exported{s.disk.name + "@then", made[0].Socket, made[0].URI, made[0].TCPURI}
	s.run("nbdinfo", "--is", "readonly", s.uri(then))
	s.qemu("qemu-io", []string{"-c", "write -P 7 1M 64k", "-c", "write -z 2M 64k", "-c", "discard 3M 64k", "-c", "write -P 8 4M 1M"}, s.node(s.disk))
	out := filepath.Join(s.TempDir(), "out")
	s.run("nbdcopy", "--connections=4", s.uri(then), out)
	s.same("nbdcopy of a snapshot", out, ref)
	s.has(s.qemu("qemu-img", []string{"compare"}, s.node(then), fileNode(ref)), "identical")
	clean := s.blockMap(s.run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b1", s.uri(then)), diskSize, dirty)
	s.sameBlocks("snapshot since its own checkpoint", clean, make([]bool, blocks(diskSize)))
}

// useBackup: an agent's export of a backup is what was backed up, and takes no change.
func useBackup(s *toolUse) {
	x := &exported{s.backup.Name, s.backup.Socket, s.backup.URI, s.backup.TCPURI}
	ref, data := s.noise(s.T, 0)
	s.has(s.run("nbdinfo", s.uri(x)), fmt.Sprintf("export-size: %d", diskSize), "is_read_only: true", "can_multi_conn: true", "base:allocation")
	s.run("nbdinfo", "--is", "readonly", s.uri(x))
	got := s.run("nbdinfo", "--json", "--map", s.uri(x))
	s.sameBlocks("nbdinfo --map", s.blockMap(got, diskSize, func(m mapped) bool { return m.Type == 0 }), data)
	got = s.qemu("qemu-img", []string{"map", "--output=json"}, s.node(x))
	s.sameBlocks("qemu-img map", s.blockMap(got, diskSize, func(m mapped) bool { return m.Data }), data)
	s.has(s.qemu("qemu-img", []string{"compare"}, s.node(x), fileNode(ref)), "identical")
	for _, connections := range []string{"--connections=1", "--connections=4"} {
		out := filepath.Join(s.TempDir(), "out")
		s.run("nbdcopy", connections, s.uri(x), out)
		s.same("nbdcopy "+connections, out, ref)
	}
	s.mount(x, func(file string) { s.same("nbdfuse", file, ref) }, "--connections=4")
	s.has(s.nbdsh(s.uri(x), `
print("write", errno(lambda: h.pwrite(b"x" * 70000, 0)))
print("zero", errno(lambda: h.zero(512, 0)))
print("trim", errno(lambda: h.trim(512, 0)))
print("read", errno(lambda: h.pread(512, 0)))
`), "write EPERM zero EPERM trim EPERM read none")
}
