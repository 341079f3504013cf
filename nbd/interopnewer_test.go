package nbd

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

// qemu's server, of a release that has extended headers and answers about one context
// alone: a disk of 8 TiB and a bitmap of what changed, in plain text and in TLS.
func TestInteropExtended(t *testing.T) {
	const size, far = 8 << 40, 5 << 40
	a := tlstest.New(t)
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS=%v", encrypted), func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk.qcow2")
			img := needs.Newer(t, "qemu-img")
			run(t, img, "create", "-f", "qcow2", "-o", "cluster_size=2M", disk, "8T")
			run(t, img, "bitmap", "--add", disk, "b")
			args := []string{
				"--persistent", "--socket=SOCKET", "--shared=5", "--format=qcow2", "--discard=unmap", "--detect-zeroes=off",
				"--allocation-depth", "--export-name=disk", "--bitmap=b",
			}
			if encrypted {
				args = append(args, "--object", "tls-creds-x509,id=t,endpoint=server,dir="+a.ServerDir()+",verify-peer=on", "--tls-creds=t")
			}
			uri := URI(program(t, needs.Newer(t, "qemu-nbd"), append(args, disk)...), "disk")
			if encrypted {
				uri = secured(uri, trusting(a.ClientDir("alice")))
			}
			dirty := "qemu:dirty-bitmap:b"
			c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation, dirty}, Conns: 2})
			s := c.session
			if s.framing != extendedHeaders || !s.filters() || len(c.Contexts()) != 2 || c.Size() != size {
				t.Fatalf("framing %v, flags %#x, contexts %q, %d bytes", s.framing, s.flags, c.Contexts(), c.Size())
			}
			ctx := t.Context()
			want := []byte("cairn")
			for _, err := range []error{
				c.WriteAt(ctx, want, far+1, false),
				c.WriteAt(ctx, make([]byte, 4<<20), 1<<40, true),
				c.Trim(ctx, 0, far),
				c.Zero(ctx, far+2<<20, size-far-2<<20, true),
				c.Flush(ctx),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, 5)
			if err := c.ReadAt(ctx, got, far+1); err != nil || string(got) != string(want) {
				t.Errorf("%q, %v", got, err)
			}
			if err := c.ReadAt(ctx, got, size-4); err == nil {
				t.Error("read beyond the end")
			}
			e, err := c.Map(ctx, ContextAllocation, 0, size)
			if err != nil || blockmap.Total(e) != size {
				t.Errorf("allocation %v, %v", e, err)
			}
			for _, e := range e {
				if data := e.State&blockmap.Zero == 0; data != (e.Offset == far && e.Length <= 2<<20) {
					t.Errorf("allocation %v", e)
				}
			}
		})
	}
}
