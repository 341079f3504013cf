package nbd

import (
	"context"
	"os"

	"github.com/cairnbackup/cairn/blockmap"
)

// Names of metadata contexts, and of families of them.
const (
	// ContextAllocation tells data from holes; states are blockmap.Data,
	// blockmap.Hole and blockmap.Zero.
	ContextAllocation = "base:allocation"
	// ContextDirtyBitmap, followed by a name, tells what changed since that
	// name's point in time; states are blockmap.Clean and blockmap.Dirty.
	ContextDirtyBitmap = "qemu:dirty-bitmap:"
	// ContextDepth tells at which layer the data of a range are; states are
	// blockmap.Nowhere, blockmap.Top, blockmap.Beneath and so on.
	ContextDepth = "qemu:allocation-depth"
)

// Device is what a server exports.
//
// Methods are called from many goroutines at once, except Close. The server
// has checked that off and n lie within Size, and that n is greater than zero.
// An error may wrap a syscall.Errno or an Error, which then is what the client
// is told; anything else reaches the client as EIO, with the error's text when
// the client understands structured replies.
type Device interface {
	// Size is the length in bytes. It is asked for at each request and may grow.
	Size() int64
	// ReadAt fills p from off, or fails; a short read needs an error. It must
	// not keep p.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p at off, or fails. It must not keep or change p.
	WriteAt(p []byte, off int64) (int, error)
	// Flush returns when every write that was acknowledged before it was called,
	// by whichever connection, is durable.
	Flush() error
	// Trim says that the content of the range is no longer needed. What it reads
	// as afterwards is the device's choice.
	Trim(off, n int64) error
	// Zero makes the range read as zeros. With punch the space may be given back.
	Zero(off, n int64, punch bool) error
	// Map describes the range in one of the contexts that Export.Contexts
	// offered: extents in order from exactly off, without gaps, at least one. It
	// may stop before the end of the range, and go beyond it.
	Map(nbdContext string, off, n int64) ([]blockmap.Extent, error)
	// Close is called once, after the connection's last request has returned.
	Close() error
}

// FileBacked is what a Device also implements when its bytes at off are those
// of a file at the same offset. The server then reads and writes the file
// itself: small reads by preadv2(RWF_NOWAIT), large transfers by splice(2).
type FileBacked interface {
	// DataFile returns the file, which stays open until the device is closed.
	// With splice false the server copies what it reads: page references, which
	// a later write to the file would show through, must not be sent.
	DataFile() (f *os.File, splice bool)
	// BeginWrite does everything that must come before a write of data, such as
	// marking blocks as changed. The data has been received by then, so the time
	// between BeginWrite and EndWrite never depends on the client. When it
	// returns nil the server writes to the file and calls EndWrite exactly once.
	//
	// A large write request comes as several pairs, in any order and at once. All but
	// the one with its end end at a multiple of 4096.
	BeginWrite(off, n int64) error
	// EndWrite ends what BeginWrite began. err is the outcome of writing to the
	// file; the result is what the client is told.
	EndWrite(off, n int64, err error) error
}

// FastZeroer is what a Device also implements when it can make zeros faster than by
// writing them, on some ranges at least. Without it a client that asks for zeros only
// if they are fast (FAST_ZERO) is told that they are not.
type FastZeroer interface {
	// ZeroFast does what Zero does, if that is faster than writing the range. If not,
	// it says so soon, with an error that is errors.ErrUnsupported; a part of the
	// range may have become zeros then, and the rest is as it was.
	ZeroFast(off, n int64, punch bool) error
}

// Peer is who is at the other end of a connection.
type Peer struct {
	// PID, UID and GID are those of the process that connected, on a unix
	// socket; -1 elsewhere.
	PID, UID, GID int
	// Addr is the remote address; empty on a unix socket without a name.
	Addr string
	// CommonName is the subject's common name in the client's certificate, and
	// DNSNames are its alternative names. Both are only set if TLS has verified
	// the certificate; it need not have either.
	CommonName string
	DNSNames   []string
}

// Export is something that a client can ask for by name.
type Export struct {
	Name, Description string
	// ReadOnly refuses everything that would change the device with EPERM.
	ReadOnly bool
	// MultiConn promises that a flush on one connection covers what was written
	// on all of them, so that a client may open several.
	MultiConn bool
	// Background says that others go first: large reads are answered in small chunks,
	// with the processor offered to whoever waits for it behind each.
	Background bool
	// Rotational says that seeks are expensive.
	Rotational bool
	// Contexts returns the metadata contexts that Device.Map understands, by
	// full name. It may be nil.
	Contexts func() []string
	// Size is the length in bytes before the device is opened. It is required.
	Size func() int64
	// Open opens the device for one connection. ctx ends when the connection
	// does or the server stops. An error is told to the client: as refused by
	// policy, or as unknown when it wraps fs.ErrNotExist.
	Open func(ctx context.Context, p Peer) (Device, error)
	// Counters, when set, counts what clients do with this export.
	Counters *Counters
}
