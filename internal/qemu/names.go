package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Everything that is made in qemu carries the volume's prefix, "cairn-TAG-", and what
// belongs to a snapshot its stem, "cairn-TAG-HASH-". qemu allows 31 characters for the
// name of a node, so that it cannot hold a snapshot's ID: a hash of it stands there.
// The whole ID is in the name of the export.
const (
	ours    = "cairn-"
	hashLen = 12

	kindFleece = "f"  // node: what the guest overwrote, over the disk
	kindFilter = "w"  // node: copies to the fleece before each write of the guest
	kindAccess = "v"  // node and export: Verify's look at the filter
	kindExport = "e." // export: + the snapshot's ID; and the descriptor of the fleece
)

var (
	tagPattern  = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

func validName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("qemu: %q cannot be the %s: up to 128 letters, digits, '.', '_' and '-' can", name, what)
	}
	return nil
}

func (d *Disk) prefix() string { return ours + d.Tag + "-" }

// stem begins the names of all that belongs to a snapshot.
func (d *Disk) stem(id string) string {
	sum := sha256.Sum256([]byte(id))
	return d.prefix() + hex.EncodeToString(sum[:])[:hashLen] + "-"
}

// stemOf returns the stem of the name of something that belongs to a snapshot of this
// volume.
func (d *Disk) stemOf(name string) (string, bool) {
	n := len(d.prefix()) + hashLen + 1
	if len(name) <= n || !strings.HasPrefix(name, d.prefix()) || name[n-1] != '-' {
		return "", false
	}
	return name[:n], true
}

// snapshotID returns the ID in the name of a snapshot's export.
func (d *Disk) snapshotID(export string) (string, bool) {
	stem, ok := d.stemOf(export)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(export[len(stem):], kindExport)
}

// bitmap is the name of a checkpoint's bitmap on the disk's node. The disk's size of
// that time is in it: qemu does not take what a disk grows by for changed.
func (d *Disk) bitmap(checkpoint string, size int64) string {
	return d.prefix() + checkpoint + "@" + strconv.FormatInt(size, 10)
}

// checkpointOf returns the checkpoint, and the size, in the name of a bitmap.
func (d *Disk) checkpointOf(bitmap string) (checkpoint string, size int64, ok bool) {
	rest, ok := strings.CutPrefix(bitmap, d.prefix())
	if !ok {
		return "", 0, false
	}
	checkpoint, digits, ok := strings.Cut(rest, "@")
	size, err := strconv.ParseInt(digits, 10, 64)
	return checkpoint, size, ok && err == nil
}

// isFilter reports whether a node is a snapshot's filter, whosever.
func isFilter(n node) bool {
	return n.Driver == "copy-before-write" && strings.HasPrefix(n.Name, ours) && strings.HasSuffix(n.Name, "-"+kindFilter)
}
