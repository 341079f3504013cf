// Package fusefs shows backups as a read-only file system:
//
//	VOLUME/TIMESTAMP/disk.raw   the volume as it was, TIMESTAMP in UTC
//	VOLUME/latest               symbolic link to the newest TIMESTAMP
//
// The package knows neither stores nor protocols: it is given a Source, which
// lists backups and opens images of them. An image is opened when somebody
// reads it (or asks for its holes), shared by all readers and closed some time
// after the last of them.
//
// Content never changes, so the kernel may keep its pages for as long as it
// likes, and its read-ahead – raised when the process may do that – turns
// sequential reading into parallel requests of 1 MiB.
package fusefs

import (
	"context"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// Entry is one backup that shall be visible.
type Entry struct {
	ID       string // unique among all entries
	Name     string // what people call the backup; may be empty
	Volume   string // name of the volume; several volumes may share one
	VolumeID string // unique per volume
	Size     int64  // bytes
	Created  time.Time
}

// Source lists backups and opens them. Its methods are called concurrently.
type Source interface {
	// List returns every backup that can be read, in any order.
	List(ctx context.Context) ([]Entry, error)
	// Open opens the backup with this ID. The context bounds the opening
	// only, not the life of the image.
	Open(ctx context.Context, id string) (Image, error)
}

// Image is the content of one backup. All methods but Close are called
// concurrently; Close is called once, after all others have returned.
type Image interface {
	Size() int64
	// ReadAt fills p with the bytes at off, all of them or an error. p lies
	// within the image and belongs to the caller again after the return.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// Extents describes [off, off+n), in order and without gaps. An extent
	// whose state has blockmap.Hole or blockmap.Zero reads as zeros. It may
	// stop early, but not before it has described one byte.
	Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error)
	Close() error
}

// Options says what to mount where. Dir and Source are required, everything
// else has useful zero values.
type Options struct {
	Dir    string // an existing empty directory
	Source Source

	// AllowOther lets other users in as far as the modes allow it (0555 and
	// 0444 then, 0500 and 0400 without). For users other than root it needs
	// user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Refresh is how long a listing is believed. Zero means two seconds.
	Refresh time.Duration
	// Idle is how long an image that nobody reads stays open. Zero means 30
	// seconds.
	Idle time.Duration
	// MaxImages bounds the images open at a time; one more is refused with
	// "too many open files". Zero means 64.
	MaxImages int
	// Grace is how long the end of the mount waits for files that are still
	// open before it cuts their readers off. Zero means two seconds.
	Grace time.Duration
	// ReadAheadKiB is the kernel's read-ahead for this mount, if the process
	// is allowed to set it (root is). Zero means 4096.
	ReadAheadKiB int
	// FuserMount never mounts directly but always through fusermount3, which
	// is how users other than root do it.
	FuserMount bool
	// Failed, when set, hears of every error that a reader of the mount sees
	// only as EIO. It is called concurrently.
	Failed func(err error)
}

func (o *Options) setDefaults() {
	if o.Refresh == 0 {
		o.Refresh = 2 * time.Second
	}
	if o.Idle == 0 {
		o.Idle = 30 * time.Second
	}
	if o.MaxImages == 0 {
		o.MaxImages = 64
	}
	if o.Grace == 0 {
		o.Grace = 2 * time.Second
	}
	if o.ReadAheadKiB == 0 {
		o.ReadAheadKiB = 4096
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
}
