package nbd

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// hiding passes connections on to a server, some options of which it makes
// unknown.
func hiding(tb testing.TB, target string, options ...uint32) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "hiding")
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer closeQuietly(client)
				server, err := net.Dial("unix", target)
				if err != nil {
					return
				}
				defer closeQuietly(server)
				if hideOptions(client, server, options) != nil {
					return
				}
				wg.Go(func() {
					_, _ = io.Copy(server, client)
					closeQuietly(server)
				})
				_, _ = io.Copy(client, server)
			})
		}
	})
	tb.Cleanup(func() {
		closeQuietly(l)
		wg.Wait()
	})
	return path
}

// hideOptions passes a handshake on, up to the end of GO.
func hideOptions(client, server net.Conn, hidden []uint32) error {
	if _, err := io.CopyN(client, server, 18); err != nil {
		return err
	}
	if _, err := io.CopyN(server, client, 4); err != nil {
		return err
	}
	for {
		h := make([]byte, optionHeaderSize)
		if _, err := io.ReadFull(client, h); err != nil {
			return err
		}
		option := binary.BigEndian.Uint32(h[8:])
		data := make([]byte, binary.BigEndian.Uint32(h[12:]))
		if _, err := io.ReadFull(client, data); err != nil {
			return err
		}
		if slices.Contains(hidden, option) {
			if _, err := client.Write(encode(magicOptReply, option, repErrUnsup, uint32(0))); err != nil {
				return err
			}
			continue
		}
		if _, err := server.Write(slices.Concat(h, data)); err != nil {
			return err
		}
		if rep, err := passReplies(client, server); err != nil || option == optGo && rep == repAck {
			return err
		}
	}
}

// passReplies passes the replies to one option on.
func passReplies(client, server net.Conn) (last uint32, err error) {
	for {
		h := make([]byte, optReplyHeadSize)
		if _, err := io.ReadFull(server, h); err != nil {
			return 0, err
		}
		data := make([]byte, binary.BigEndian.Uint32(h[16:]))
		if _, err := io.ReadFull(server, data); err != nil {
			return 0, err
		}
		if _, err := client.Write(slices.Concat(h, data)); err != nil {
			return 0, err
		}
		if rep := binary.BigEndian.Uint32(h[12:]); rep == repAck || rep&repError != 0 {
			return rep, nil
		}
	}
}
