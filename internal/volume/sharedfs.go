package volume

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// localMagics are file systems of one host: nobody but its kernel writes to their files.
var localMagics = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC,
	unix.F2FS_SUPER_MAGIC, unix.BCACHEFS_SUPER_MAGIC, unix.REISERFS_SUPER_MAGIC, unix.NILFS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC,
	unix.MSDOS_SUPER_MAGIC, unix.UDF_SUPER_MAGIC,
	0x2fc12fc1, // ZFS
	0x3153464a, // JFS
	0x7366746e, // NTFS3
}

// otherHostsWrite tells whether other hosts may have the file: it is a device, or on a file
// system that is not known to be of this host alone, such as NFS, SMB, Ceph, GFS2 or FUSE.
func otherHostsWrite(f *os.File, device bool) (bool, error) {
	if device {
		return true, nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("look at the file system of %s: %w", f.Name(), err)
	}
	return !local(int64(st.Type)), nil //nolint:unconvert // it is an int32 elsewhere
}

func local(magic int64) bool { return slices.Contains(localMagics, magic&0xffffffff) }
