package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mount serves the backups of a source at a directory until the context ends
// or somebody else unmounts it. ready, when set, is called once the file
// system answers. At the end of the context the mount goes away: at once if no
// file is open, else after Options.Grace, when readers that are still there are
// cut off. The result is nil after either kind of end.
func Mount(ctx context.Context, o Options, ready func()) error {
	o.setDefaults()
	dir, err := mountPoint(o.Dir)
	if err != nil {
		return err
	}
	life, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	t := newTree(&o, func() context.Context { return life })
	server, err := gofs.Mount(dir, &root{tree: t}, t.options(&o))
	if err != nil {
		return explainMount(dir, err)
	}
	ours := self(dir)
	raiseReadAhead(dir, o.ReadAheadKiB)
	if ready != nil {
		ready()
	}

	gone := make(chan struct{})
	go func() { server.Wait(); close(gone) }()
	t.pool.keep(ctx.Done(), gone)
	select {
	case <-gone:
		err = nil
	default:
		err = leave(context.WithoutCancel(ctx), server, dir, ours, o.Grace, cut, gone)
	}
	cut() // counts and reads that nobody waits for any more
	t.sizes.wait()
	select {
	case <-gone:
		t.pool.closeAll()
	default: // could not be unmounted; the process is about to end anyway
	}
	return err
}

func newTree(o *Options, life func() context.Context) *tree {
	t := &tree{
		catalog: newCatalog(o), pool: newPool(o, life), sizes: newSizes(o.Failed), failed: o.Failed,
		dirMode: 0o500, mode: 0o400, mounted: time.Now(),
	}
	t.uid, t.gid = owner()
	if o.AllowOther {
		t.dirMode, t.mode = 0o555, 0o444
	}
	return t
}

// options are go-fuse's. Modes need the kernel's check only where others are
// let in: without it every look at a directory would first ask for attributes.
func (t *tree) options(o *Options) *gofs.Options {
	second := time.Second
	mount := fuse.MountOptions{
		FsName: "cairn", Name: "cairn", Options: []string{"ro"},
		AllowOther:               o.AllowOther,
		MaxWrite:                 1 << 20,
		MaxReadAhead:             1 << 20,
		MaxBackground:            64,
		DirectMount:              !o.FuserMount,
		DirectMountFlags:         syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_RDONLY | syscall.MS_NOATIME,
		ExplicitDataCacheControl: true, // content never changes: no attributes are asked for before a read
		IgnoreSecurityLabels:     true,
		DisableSplice:            true, // a message of 1 MiB and a header does not fit into a pipe, and it gains nothing
	}
	if o.AllowOther {
		mount.Options = append(mount.Options, "default_permissions")
	}
	if os.Geteuid() == 0 && !o.FuserMount {
		mount.Options = mount.Options[1:] // a flag of the system call, not a word
	}
	// No AttrTimeout: each answer says itself how long it holds, none is zero.
	return &gofs.Options{MountOptions: mount, EntryTimeout: &second, NullPermissions: true}
}

// keep sweeps idle images until the end.
func (p *pool) keep(ended, gone <-chan struct{}) {
	tick := time.NewTicker(max(p.idle/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-gone:
			return
		case now := <-tick.C:
			p.sweep(now)
		}
	}
}

// self returns what says whether the mount at dir is still this one. Somebody
// may have detached it and mounted something else there, which is not ours to
// unmount. Where that cannot be told, it is.
func self(dir string) func() bool {
	was, ok, err := findMount(dir)
	if err != nil || !ok {
		return func() bool { return true }
	}
	return func() bool {
		is, ok, err := findMount(dir)
		return err != nil || ok && is == was
	}
}

// errDetached says that the mount is no longer in the tree.
var errDetached = errors.New("it is detached, but files of it are still open")

// leave unmounts: politely for the time of grace, then by force. A mount that
// somebody has detached is only waited for.
func leave(ctx context.Context, server *fuse.Server, dir string, ours func() bool, grace time.Duration, cut func(), gone <-chan struct{}) error {
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := errDetached
		if ours() {
			if err = server.Unmount(); err == nil {
				return nil
			}
		}
		select {
		case <-gone: // somebody else was faster
			return nil
		case <-tick.C:
			continue
		case <-deadline.C:
		}
		cut()
		if ours() {
			if ferr := forceUnmount(ctx, dir); ferr != nil {
				return fmt.Errorf("unmount %s: %w (before that: %w)", dir, ferr, err)
			}
		}
		// Cut off means answered with an error; without the right to abort the
		// connection the last reader has to go by itself.
		last := time.NewTimer(grace + time.Second)
		defer last.Stop()
		select {
		case <-gone:
			return nil
		case <-last.C:
			return fmt.Errorf("unmount %s: %w", dir, errDetached)
		}
	}
}

// taken is a refusal because of what is at the mount point already. errors.Is
// finds it equal to syscall.EBUSY.
type taken string

// Error returns the sentence.
func (e taken) Error() string { return string(e) }

// Is makes it EBUSY.
func (taken) Is(target error) bool { return target == syscall.EBUSY }

// mountPoint checks the directory and returns its absolute path.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find mount point %s: %w", dir, err)
	}
	entries, err := os.ReadDir(abs)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return "", taken(fmt.Sprintf("%s is a mount point whose process has died: free it with \"cairn umount %s\" (or fusermount3 -u) and mount again", dir, dir))
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("mount point %s does not exist: make it with mkdir", dir)
	case errors.Is(err, syscall.ENOTDIR):
		return "", fmt.Errorf("mount point %s is not a directory", dir)
	case err != nil:
		return "", fmt.Errorf("look at mount point %s: %w", dir, err)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", fmt.Errorf("look at mount point %s: %w", dir, err)
	}
	if m, ok, err := findMount(abs); err != nil {
		return "", err
	} else if ok && m.cairn() {
		return "", taken(fmt.Sprintf("backups are mounted on %s already: unmount them first with \"cairn umount %s\"", dir, dir))
	}
	if len(entries) > 0 {
		return "", taken(fmt.Sprintf("mount point %s is not empty: a mount would hide what is in it; take an empty directory", dir))
	}
	return abs, nil
}

// explainMount turns what mount(2) and fusermount3 say into a way out.
func explainMount(dir string, err error) error {
	if _, serr := os.Stat("/dev/fuse"); errors.Is(serr, fs.ErrNotExist) {
		return fmt.Errorf("mount %s: this kernel has no FUSE (/dev/fuse is missing): load it with \"modprobe fuse\", in a container start it with \"--device /dev/fuse\"", dir)
	}
	if f, oerr := os.OpenFile("/dev/fuse", os.O_RDWR, 0); oerr != nil {
		return fmt.Errorf("mount %s: /dev/fuse cannot be opened: mount as root, or let users open it (\"chmod 666 /dev/fuse\"), as most systems do: %w", dir, oerr)
	} else if cerr := f.Close(); cerr != nil {
		return fmt.Errorf("mount %s: %w", dir, cerr)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("mount %s: %w (for users other than root this needs fusermount3, Debian package fuse3, and a directory of their own)", dir, err)
	}
	return fmt.Errorf("mount %s: %w", dir, err)
}

// raiseReadAhead is worth a factor of five or so for sequential readers. The
// kernel lets only root do it; without it everything works, slower.
func raiseReadAhead(dir string, kib int) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return
	}
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	f, err := os.OpenFile(name, os.O_WRONLY, 0) // not created where there is none
	if err != nil {
		return
	}
	_, _ = f.WriteString(strconv.Itoa(kib))
	_ = f.Close()
}
