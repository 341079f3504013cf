package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// diskSize of the disks that tools use; the last block is not whole.
const diskSize = 8<<20 + 512

// toolbox is a machine whose exports other people's NBD programs use.
type toolbox struct {
	*host
	ca     *tlstest.Authority
	certs  string // the folder of a client that may use everything
	backup agent.ExportInfo
	seed   uint64
}

// way is how a program reaches an export.
type way struct {
	name string
	// uri is for programs of libnbd.
	uri func(x *exported) string
	// plain is the same for programs that cannot show a certificate.
	plain func(x *exported) string
	// node and object are for qemu's programs.
	node   func(x *exported) string
	object []string
}

// exported is one export, as its server tells of it.
type exported struct{ name, socket, uri, tcp string }

// as is another export beside it.
func (x *exported) as(suffix string) *exported {
	return &exported{x.name + suffix, x.socket, nbd.URI(x.socket, x.name+suffix), x.tcp + suffix}
}

// toolUse is one use of one tool.
type toolUse struct {
	*testing.T
	*toolbox
	way
	disk *exported
	rng  *rand.Rand
}

// TestNBDTools: what others have written to use NBD works on volumes and on exports of
// backups, over unix sockets and over TCP. The product's TCP is with TLS and certificates
// only; fio and nbdfuse, which let nobody name one, go through a proxy that shows it.
func TestNBDTools(t *testing.T) {
	if testing.Short() {
		t.Skip("runs many programs: not with -short")
	}
	t.Parallel()
	for tool, debian := range map[string]string{
		"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "nbdsh": "python3-libnbd",
		"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "fio": "fio",
	} {
		needs.Tool(t, tool, debian)
	}
	b := newToolbox(t)
	tools := []struct {
		name string
		use  func(s *toolUse)
	}{
		{"nbdinfo", useNbdinfo},
		{"qemu-img", useQemuImg},
		{"qemu-io", useQemuIO},
		{"nbdcopy", useNbdcopy},
		{"nbdfuse", useNbdfuse},
		{"nbdsh", useNbdsh},
		{"strange commands", useStrangeCommands},
		{"fio", useFio},
		{"a snapshot", useSnapshot},
		{"a backup", useBackup},
	}
	for _, w := range b.ways() {
		for i, tool := range tools {
			t.Run(tool.name+" over "+w.name, func(t *testing.T) {
				t.Parallel()
				s := &toolUse{T: t, toolbox: b, way: w, rng: rand.New(rand.NewPCG(b.seed, uint64(i)))}
				s.disk = b.volume(t, fmt.Sprintf("disk%d-%s", i, w.name), diskSize)
				tool.use(s)
			})
		}
	}
}

// newToolbox starts a data plane and an agent, both with a door over TCP, and exports a
// backup of what noise makes of the seed.
func newToolbox(t *testing.T) *toolbox {
	t.Helper()
	b := &toolbox{host: emptyHost(t, cairnBinary(t)), ca: tlstest.New(t), seed: uint64(time.Now().UnixNano())}
	t.Logf("seed %d", b.seed)
	b.certs = b.ca.ClientDir("alice")
	b.doors(b.ca)
	b.startServe(b.settings...)
	b.stores = []string{b.path("store1"), b.path("store2"), b.path("store3")}
	b.initRepository(2, 1)
	b.startAgent()

	v := b.volume(t, "saved", diskSize)
	file, _ := b.noise(t, 0)
	b.must(t, "nbdcopy", file, v.uri)
	rec := b.host.backup("saved", agent.CreateBackup{Volume: "saved"})
	var err error
	if b.backup, err = b.control.Export(t.Context(), agent.Export{Ref: rec.ID, Name: "copy"}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *toolbox) ways() []way {
	return []way{
		{
			name: "unix",
			uri:  func(x *exported) string { return x.uri }, plain: func(x *exported) string { return x.uri },
			node: func(x *exported) string { return "driver=nbd,path=" + x.socket + ",export=" + x.name },
		},
		{
			name: "TLS",
			uri:  func(x *exported) string { return x.tcp + "?tls-certificates=" + b.certs },
			plain: func(x *exported) string {
				return nbd.URI(tlstest.Proxy(b.t, b.addr(x), "127.0.0.1", b.ca.ClientConfig("alice")), x.name)
			},
			node: func(x *exported) string {
				host, port, _ := strings.Cut(b.addr(x), ":")
				return "driver=nbd,host=" + host + ",port=" + port + ",export=" + x.name + ",tls-creds=t"
			},
			object: []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + b.certs},
		},
	}
}

// addr is the door over TCP behind which an export is.
func (b *toolbox) addr(x *exported) string {
	u, err := url.Parse(x.tcp)
	if err != nil {
		b.t.Error(err) // and nobody reaches it
		return ""
	}
	return net.JoinHostPort(u.Hostname(), u.Port())
}

func (b *toolbox) volume(t *testing.T, name string, size int64) *exported {
	t.Helper()
	v, err := b.data.CreateVolume(t.Context(), serve.CreateVolume{Name: name, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return &exported{v.Name, v.Socket, v.URI, v.TCPURI}
}

// noise makes a file of random content with holes, always the same of one number, and
// says which blocks of it have data.
func (b *toolbox) noise(t *testing.T, number uint64) (file string, data []bool) {
	t.Helper()
	rng := rand.New(rand.NewPCG(b.seed, 1000+number))
	file = filepath.Join(t.TempDir(), "noise")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err = f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	data = make([]bool, blocks(diskSize))
	p := make([]byte, toolBlock)
	for i := range data {
		if data[i] = rng.IntN(2) == 0; !data[i] {
			continue
		}
		for j := range p {
			p[j] = byte(1 + rng.IntN(255)) // of zeros a tool may make a hole
		}
		off := int64(i) * toolBlock
		if _, err = f.WriteAt(p[:min(toolBlock, diskSize-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	return file, data
}

// toolBlock is how finely changes are tracked.
const toolBlock = 64 << 10

// blocks is how many blocks a range from the start has.
func blocks(n int64) int64 { return (n + toolBlock - 1) / toolBlock }

// command prepares a program that ends with the test.
func (b *toolbox) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, needs.Tool(t, name, "that the test names"), args...)
	cmd.Dir = t.TempDir()
	// nbdsh is a script for the system's Python, which has the module.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin")
	return cmd
}

// must runs a program that has to succeed, and returns what it said.
func (b *toolbox) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := b.command(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// run is must for the test of the use.
func (s *toolUse) run(name string, args ...string) string {
	s.Helper()
	return s.must(s.T, name, args...)
}

// qemu runs one of qemu's programs on nodes, which follow its arguments.
func (s *toolUse) qemu(name string, args []string, nodes ...string) string {
	s.Helper()
	sub := 0
	if name == "qemu-img" { // its options follow the subcommand
		sub = 1
	}
	return s.run(name, slices.Concat(args[:sub], s.object, args[sub:], []string{"--image-opts"}, nodes)...)
}

// fileNode is a raw file for qemu's programs.
func fileNode(file string) string { return "driver=raw,file.driver=file,file.filename=" + file }

// has checks that a program's answer holds some texts.
func (s *toolUse) has(out string, want ...string) {
	s.Helper()
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), w) {
			s.Errorf("no %q in\n%s", w, out)
		}
	}
}

// same compares two files.
func (s *toolUse) same(what, got, want string) {
	s.Helper()
	if out, err := s.command(s.T, "cmp", got, want).CombinedOutput(); err != nil {
		s.Errorf("%s: %v\n%s", what, err, out)
	}
}
