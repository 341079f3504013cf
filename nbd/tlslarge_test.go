package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// Large requests and many of them pass through TLS.
func TestTLSLarge(t *testing.T) {
	for i, kind := range kinds[:2] {
		t.Run(kind.name, func(t *testing.T) {
			a := tlstest.New(t)
			d, m := kind.device(t, maxPayload)
			e := m.export("disk")
			e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
			w := connect(t, listen(t, withTLS(serverOf(t, e), a.ServerConfig())))
			w.extended = i%2 == 0
			w.hello()
			w = w.startTLS(a.ClientConfig("c"))
			w.enterAfterHello("disk", true)
			w.large()
		})
	}
}

// large writes 64 MiB in one request, reads them back so, and has more requests in
// flight than the server defers.
func (w *wire) large() {
	w.t.Helper()
	if err := w.nc.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil { // under the race detector that is a lot to encrypt
		w.t.Fatal(err)
	}
	p := bytes.Repeat([]byte("0123456789abcde\n"), maxPayload/16)
	w.request(0, cmdWrite, 1, 0, maxPayload, p)
	w.expectSimple(1, 0)
	got := make([]byte, maxPayload)
	w.request(0, cmdRead, 2, 0, maxPayload)
	w.readChunks(got, 2, maxPayload)
	if !bytes.Equal(got, p) {
		w.t.Fatal("read something else than was written")
	}
	const many = 200
	clear(got)
	go func() {
		for i := range uint64(many) {
			w.request(0, cmdRead, 100+i, i*(64<<10), 64<<10)
		}
	}()
	w.readChunks(got, 0, many*(64<<10))
	if !bytes.Equal(got[:many*(64<<10)], p[:many*(64<<10)]) {
		w.t.Fatal("many reads read something else than was written")
	}
}

// readChunks reads data chunks until total bytes have come; cookie zero takes any.
func (w *wire) readChunks(p []byte, cookie uint64, total int) {
	w.t.Helper()
	for total > 0 {
		flags, kind, c, n := w.chunkHead()
		off := binary.BigEndian.Uint64(w.read(8))
		n -= 8
		if flags > 1 || kind != chunkOffsetData || cookie != 0 && c != cookie || off+uint64(n) > uint64(len(p)) {
			w.t.Fatalf("chunk of flags %d, type %d, for %d, %d bytes at %d", flags, kind, c, n, off)
		}
		if _, err := io.ReadFull(w.nc, p[off:off+uint64(n)]); err != nil {
			w.t.Fatal(err)
		}
		total -= n
	}
}
