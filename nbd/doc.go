// Package nbd speaks the Network Block Device protocol: a server that exports
// Devices, and a client that reads and writes what another server exports.
//
// # Server
//
// A program describes what it serves as Exports and hands connections to a
// Server through listeners:
//
//	server := nbd.NewServer(nbd.ServerOptions{
//		Lookup: func(name string, _ nbd.Peer) (*nbd.Export, bool) {
//			return export, name == "" || name == export.Name
//		},
//		List: func(nbd.Peer) []*nbd.Export { return []*nbd.Export{export} },
//	})
//	listener, err := net.Listen("unix", "/run/disk.sock")
//	…
//	err = server.Serve(ctx, listener) // until ctx ends
//
// An Export opens its Device when a client has chosen it, not before, and the
// Device is closed after the last request of that connection. A Device that is
// a plain file underneath says so by implementing FileBacked; its reads and
// writes then go to the file without a copy through the program.
//
// With ServerOptions.TLS clients have to encrypt their connection first, and
// exports are found and opened with the name in their certificate at hand.
//
// # Client
//
// A Client sends requests from any number of goroutines over one or more
// connections:
//
//	client, err := nbd.Dial(ctx, nbd.URI("/run/disk.sock", "disk"), nbd.ClientOptions{
//		Contexts: []string{nbd.ContextAllocation},
//	})
//	…
//	extents, err := client.Map(ctx, nbd.ContextAllocation, 0, client.Size())
//
// Addresses that begin with nbds are spoken to with TLS, see Dial; List and Probe
// ask what a server has without opening any of it. A Client that may reconnect
// outlives its connections, see there for what that can promise.
//
// # Kernel
//
// AttachKernel makes a block device, /dev/nbdN, of an export, and KernelDevice.Keep
// brings it fresh connections when the server was away.
//
// PROTOCOL.md lists which parts of the protocol are spoken, and every limit.
// The package needs Linux: it uses splice(2), preadv2(2) and SO_PEERCRED.
//
// Nothing that a peer sends makes this package panic or allocate without a
// bound; a peer that breaks the protocol loses its own connection only.
package nbd
