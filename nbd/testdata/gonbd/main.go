// Command gonbd exports a raw file as "disk" with go-nbd's own server on a unix socket,
// for scripts/bench-nbd.py to compare with.
package main

import (
	"flag"
	"log"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
)

func main() {
	socket := flag.String("socket", "", "unix socket to listen on")
	file := flag.String("file", "", "raw file to export")
	flag.Parse()
	if err := run(*socket, *file); err != nil {
		log.Fatal("gonbd: ", err)
	}
}

func run(socket, file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0) //nolint:gosec // the file that the caller named
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", socket) //nolint:noctx // it ends with the process
	if err != nil {
		return err
	}
	exports := []*server.Export{{Name: "disk", Backend: backend.NewFileBackend(f)}}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			// It ends with an error whenever a client leaves.
			_ = server.Handle(c, exports, &server.Options{MinimumBlockSize: 1, PreferredBlockSize: 4096, MaximumBlockSize: 32 << 20, SupportsMultiConn: true})
			_ = c.Close()
		}()
	}
}
