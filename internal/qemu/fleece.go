package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

const (
	fleecePattern = "fleece-*"
	clusterBits   = 16 // as the blocks of the project, and what is copied before a write
	clusterSize   = 1 << clusterBits
	// maxDisk is the largest disk: qemu's bound on a table of the first level.
	maxDisk = 1 << 51
)

// newFleece makes the file that keeps what the guest overwrites: an empty qcow2 of
// version 3. Nobody finds it by a name: what holds it open is all that keeps it, so
// that nothing is left of it however this process or qemu ends.
func newFleece(dir string, size int64) (_ *os.File, err error) {
	if size <= 0 || size > maxDisk {
		return nil, fmt.Errorf("qemu: a disk of %d bytes cannot be snapshotted", size)
	}
	f, err := os.CreateTemp(dir, fleecePattern)
	if err != nil {
		return nil, fmt.Errorf("qemu: make the file for what the guest overwrites: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) { // a Sweep may be faster
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if _, err := f.WriteAt(emptyQcow2(size), 0); err != nil {
		return nil, fmt.Errorf("qemu: write the file for what the guest overwrites: %w", err)
	}
	return f, nil
}

// emptyQcow2 is an image without data: its header, the table and the first block of
// reference counts, and the table of the first level, each in clusters of its own.
func emptyQcow2(size int64) []byte {
	const (
		perL1          = clusterSize * clusterSize / 8 // bytes of the disk
		refcountTable  = 1 * clusterSize
		refcountBlock  = 2 * clusterSize
		l1Table        = 3 * clusterSize
		headerLength   = 104
		refcountOrder  = 4 // 16 bits
		magic, version = 0x514649fb, 3
	)
	l1 := (size + perL1 - 1) / perL1
	clusters := 3 + (l1*8+clusterSize-1)/clusterSize
	b := make([]byte, clusters*clusterSize)
	be := binary.BigEndian
	be.PutUint32(b[0:], magic)
	be.PutUint32(b[4:], version)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(size)) //nolint:gosec // newFleece has checked it
	be.PutUint32(b[36:], uint32(l1))   //nolint:gosec // at most maxDisk / perL1
	be.PutUint64(b[40:], l1Table)
	be.PutUint64(b[48:], refcountTable)
	be.PutUint32(b[56:], 1) // clusters of the table of reference counts
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
	be.PutUint64(b[refcountTable:], refcountBlock)
	for i := range clusters { // at most 515 of the 32768 of a block
		be.PutUint16(b[refcountBlock+2*i:], 1)
	}
	return b
}
