package serve

import (
	"os"
	"runtime/metrics"
	"strconv"
	"strings"
)

// memory returns what this process has resident, and what of it are live Go
// objects; what cannot be learnt is 0.
func memory() (resident, heap int64) {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() == metrics.KindUint64 {
		heap = int64(sample[0].Value.Uint64()) //nolint:gosec // less than the address space
	}
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, heap
	}
	fields := strings.Fields(string(b)) // total and resident pages come first
	if len(fields) < 2 {
		return 0, heap
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, heap
	}
	return pages * int64(os.Getpagesize()), heap
}
