// Package wire is what a test and its guest say to each other over a serial port: frames
// that belong to streams, each of which is a command in the guest or a connection to one
// of its unix sockets.
//
// The test chooses a stream's ID, which is never used again, and opens it with Run or
// Dial. Then both send Data; the test ends its side with EOF, the guest ends the stream
// with Ended. The guest begins with Hello on stream 0 whenever it has booted.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind is what a frame is about.
type Kind uint8

// The kinds of frames, with their payload.
const (
	Hello  Kind = 1 + iota // guest: it has booted
	Run                    // test: a script for the guest's shell
	Dial                   // test: the path of a unix socket
	Data                   // both: bytes of a connection, or from a command
	EOF                    // test: no more Data of its own
	Signal                 // test: one byte, for the command and its children
	Off                    // test: shut the guest down
	Ended                  // guest: exit status (one byte), then a text if the stream failed
)

// MaxPayload is what one frame carries at most.
const MaxPayload = 64 << 10

const headerSize = 9

// Frame is one message.
type Frame struct {
	Stream  uint32
	Kind    Kind
	Payload []byte
}

// Write sends a frame with one call of w.Write. Payloads above MaxPayload are an error.
func Write(w io.Writer, f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("a frame of %d bytes is more than the %d that one carries", len(f.Payload), MaxPayload)
	}
	p := make([]byte, headerSize, headerSize+len(f.Payload))
	binary.BigEndian.PutUint32(p, f.Stream)
	p[4] = byte(f.Kind)
	binary.BigEndian.PutUint32(p[5:], uint32(len(f.Payload))) //nolint:gosec // capped above
	_, err := w.Write(append(p, f.Payload...))
	return err
}

// Read returns the next frame, whose payload is the caller's. The end between two
// frames is io.EOF.
func Read(r io.Reader) (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Stream: binary.BigEndian.Uint32(h[:]), Kind: Kind(h[4])}
	n := binary.BigEndian.Uint32(h[5:])
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("a frame claims %d bytes, of at most %d", n, MaxPayload)
	}
	f.Payload = make([]byte, n)
	_, err := io.ReadFull(r, f.Payload)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // it is in the middle of a frame
	}
	return f, err
}
