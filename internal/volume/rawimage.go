package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// formats are the beginnings (and ends) of files that hold a disk but are not
// its bytes. To serve one as raw would show a guest the container, and a guest
// that writes its own header could make a later tool read other files.
var formats = []struct {
	name   string
	off    int64 // negative: from the end
	magic  string
	advice string
}{
	{"a qcow or qcow2 image", 0, "QFI\xfb", adviceConvert},
	{"a QED image", 0, "QED\x00", adviceConvert},
	{"a VMDK image", 0, "KDMV", adviceConvert},
	{"a VMDK image", 0, "COWD", adviceConvert},
	{"a VMDK descriptor", 0, "# Disk DescriptorFile", adviceConvert},
	{"a VHDX image", 0, "vhdxfile", adviceConvert},
	{"a VHD image", 0, "conectix", adviceConvert},
	{"a VHD image", -512, "conectix", adviceConvert},
	{"a VDI image", 0x40, "\x7f\x10\xda\xbe", adviceConvert},
	{"a Parallels image", 0, "WithoutFreeSpace", adviceConvert},
	{"a Parallels image", 0, "WithouFreSpacExt", adviceConvert},
	{"an Apple disk image", -512, "koly", adviceConvert},
	{"a LUKS container", 0, "LUKS\xba\xbe", "open it with cryptsetup and use the device that appears"},
	{"a gzip file", 0, "\x1f\x8b\x08", adviceUnpack},
	{"an xz file", 0, "\xfd7zXZ\x00", adviceUnpack},
	{"a zstd file", 0, "\x28\xb5\x2f\xfd", adviceUnpack},
}

const (
	adviceConvert = "convert it with qemu-img convert -O raw"
	adviceUnpack  = "unpack it first"
)

// checkRaw refuses what does not look like a raw disk.
func checkRaw(f vfs.File, path string, size int64) error {
	for _, c := range formats {
		off := c.off
		if off < 0 {
			off += size
		}
		if off < 0 || off+int64(len(c.magic)) > size {
			continue
		}
		p := make([]byte, len(c.magic))
		if _, err := f.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the header of %s: %w", path, err)
		}
		if bytes.Equal(p, []byte(c.magic)) {
			return fmt.Errorf("%s is %s, %w: %s, or take its very bytes as the disk with --allow-format", path, c.name, ErrFormat, c.advice)
		}
	}
	return nil
}
