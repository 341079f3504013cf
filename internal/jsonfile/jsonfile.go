// Package jsonfile keeps one JSON object in a file that is replaced as a whole, with
// what it is, a version and a checksum (FORMAT.md), so that a person can read it and a
// damaged one is never believed.
package jsonfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// limit is the most that a file may have. Attributes, at most 64 KiB, are the largest
// part of any.
const limit = 1 << 20

// ErrDamaged says that a file is not what was written.
var ErrDamaged = errors.New("the file is damaged")

// Format says what files of one kind hold.
type Format struct {
	Name    string
	Version int // that is written, and the only one that is read
}

// envelope is a file. CRC is that of the object without white space.
type envelope struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	CRC     string          `json:"crc32c"`
	Object  json.RawMessage `json:"object"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode returns the content of a file that holds v.
func (f Format) Encode(v any) ([]byte, error) {
	object, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", f.Name, err)
	}
	data, err := json.MarshalIndent(envelope{f.Name, f.Version, sum(object), object}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", f.Name, err)
	}
	if len(data) >= limit {
		return nil, fmt.Errorf("encode %s: %d bytes, and %d is the limit", f.Name, len(data), limit)
	}
	return append(data, '\n'), nil
}

// Decode reads what Encode made into v. What another version wrote is an error that
// says so; all else wraps [ErrDamaged].
func (f Format) Decode(data []byte, v any) error {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case e.Format != f.Name:
		return fmt.Errorf("%w: it should be of the format %q", ErrDamaged, f.Name)
	case e.Version != f.Version:
		return fmt.Errorf("the file has version %d of the format %s, and this program reads version %d: use the release that wrote it", e.Version, f.Name, f.Version)
	}
	var object bytes.Buffer
	if err := json.Compact(&object, e.Object); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if sum(object.Bytes()) != e.CRC {
		return fmt.Errorf("%w: its checksum is not that of its content", ErrDamaged)
	}
	if err := json.Unmarshal(object.Bytes(), v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func sum(object []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(object, castagnoli)) }

// Write makes v the durable content of a file, all of it or nothing: see [vfs.WriteFile].
func (f Format) Write(fsys vfs.FS, name string, v any) error {
	data, err := f.Encode(v)
	if err != nil {
		return err
	}
	return vfs.WriteFile(fsys, name, data, 0o600)
}

// Read reads a file into v.
func (f Format) Read(fsys vfs.FS, name string, v any) error {
	data, err := vfs.ReadFile(fsys, name, limit)
	if err != nil {
		return err
	}
	if err = f.Decode(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
