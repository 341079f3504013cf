package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
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
	// newer lets the programs of a newer Debian do it, where it has them: those ask for
	// extended headers.
	newer bool
	// packets is what nbdinfo then calls the framing of replies.
	packets string
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
	needs.Newer(t, "nbdinfo")
	b := newToolbox(t)
	type tool struct {
		name string
		use  func(s *toolUse)
	}
	all := []tool{
		{"nbdinfo", useNbdinfo},
		{"qemu-img", useQemuImg},
		{"qemu-io", useQemuIO},
		{"nbdcopy", useNbdcopy},
		{"nbdsh", useNbdsh},
		{"a snapshot", useSnapshot},
		{"a backup", useBackup},
	}
	old := []tool{{"nbdfuse", useNbdfuse}, {"strange commands", useStrangeCommands}, {"fio", useFio}}
	for _, w := range b.ways() {
		tools := slices.Concat(all, old)
		if w.newer {
			tools = slices.Concat(all, []tool{{"64 bits", useExtended}})
		}
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
	must(t, b.command(t, "nbdcopy", file, v.uri))
	rec := b.host.backup("saved", agent.CreateBackup{Volume: "saved"})
	var err error
	if b.backup, err = b.control.Export(t.Context(), agent.Export{Ref: rec.ID, Name: "copy"}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *toolbox) ways() []way {
	unix := way{
		name: "unix", packets: "structured packets",
		uri: func(x *exported) string { return x.uri }, plain: func(x *exported) string { return x.uri },
		node: func(x *exported) string { return "driver=nbd,path=" + x.socket + ",export=" + x.name },
	}
	extended := unix
	extended.name, extended.newer, extended.packets = "extended", true, "extended packets"
	return []way{
		unix,
		extended,
		{
			name: "TLS", packets: "structured packets",
			uri: func(x *exported) string { return x.tcp + "?tls-certificates=" + b.certs },
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
