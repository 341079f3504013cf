package nbd

import "sync/atomic"

// Counters counts the requests of an export that succeeded, over all its
// connections. The server adds to them; anybody may read them at any time.
type Counters struct {
	// Connections is how many clients have the export open now.
	Connections atomic.Int64

	Reads, ReadBytes   atomic.Int64
	Writes, WriteBytes atomic.Int64
	// Flushes counts FLUSH and FUA.
	Flushes atomic.Int64
	// Trims and Zeroes count requests, TrimBytes and ZeroBytes their lengths.
	Trims, TrimBytes  atomic.Int64
	Zeroes, ZeroBytes atomic.Int64
	// Failed counts requests that were answered with an error.
	Failed atomic.Int64
}
