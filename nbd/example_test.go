package nbd_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"github.com/cairnbackup/cairn/nbd"
)

// A server with one export, and a client of it.
func Example() {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	dir, err := os.MkdirTemp("", "nbd")
	must(err)
	defer os.RemoveAll(dir)

	device, err := nbd.FromBackend(backend.NewMemoryBackend(make([]byte, 1<<20)))
	must(err)
	export := &nbd.Export{
		Name: "disk",
		Size: device.Size,
		Open: func(context.Context, nbd.Peer) (nbd.Device, error) { return device, nil },
	}
	server := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(name string, _ nbd.Peer) (*nbd.Export, bool) { return export, name == export.Name },
		List:   func(nbd.Peer) []*nbd.Export { return []*nbd.Export{export} },
	})
	socket := filepath.Join(dir, "disk.sock")
	listener, err := net.Listen("unix", socket)
	must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener) }()

	client, err := nbd.Dial(ctx, nbd.URI(socket, "disk"), nbd.ClientOptions{})
	must(err)
	must(client.WriteAt(ctx, []byte("cairn"), 4096, true))
	p := make([]byte, 5)
	must(client.ReadAt(ctx, p, 4096))
	fmt.Printf("%s of %d bytes\n", p, client.Size())
	must(client.Close())
	stop()
	must(<-done)
	// Output: cairn of 1048576 bytes
}
