package nbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrDetached says that somebody else has detached a device.
var ErrDetached = errors.New("nbd: the device was detached")

// KernelOptions say how the kernel uses an export. The zero value is ready for use.
type KernelOptions struct {
	// Device is the path of the device, /dev/nbdN; with "" the kernel chooses.
	Device string
	// Conns is how many connections to use, if the server allows more than one; 0 is one.
	Conns int
	// RequestTimeout is how long a request may take before the kernel takes its
	// connection for dead, and sends it over another; 0 is 30 seconds. What was sent over
	// a connection that has ended is sent again only then.
	RequestTimeout time.Duration
	// DeadTimeout is how long requests wait, while there is no connection, for
	// [KernelDevice.Keep] to bring one; 0: they fail at once.
	DeadTimeout time.Duration
}

// KernelDevice is a block device of the kernel's that is attached to an export;
// [DetachKernel] ends that.
type KernelDevice struct {
	o        KernelOptions
	uri      string
	endpoint endpoint
	session  *session
	index    int
	driver   *driver
	watch    *driver
	relays   relays
}

const (
	minKernelBlock = 512
	maxKernelBlock = 4096 // the smallest page
	requestTimeout = 30 * time.Second
	lookEvery      = time.Second // whether the device is still attached
	redialPause    = 200 * time.Millisecond
)

// AttachKernel makes a block device of the export that uri names, which stays until it is
// detached, also when this program ends: then nobody brings fresh connections. Close
// frees what this program has of it.
func AttachKernel(ctx context.Context, uri string, o KernelOptions) (*KernelDevice, error) {
	return attachKernel(ctx, uri, o, openDriver)
}

func attachKernel(ctx context.Context, uri string, o KernelOptions, open opener) (_ *KernelDevice, err error) {
	d := &KernelDevice{o: o, uri: uri, index: -1}
	if d.endpoint, err = parseURI(uri); err != nil {
		return nil, err
	}
	if o.Device != "" {
		if d.index, err = kernelIndex(o.Device); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("nbd: attach %s: %w", uri, errors.Join(err, d.Close()))
		}
	}()
	if d.driver, err = open(false); err != nil {
		return nil, err
	}
	if d.watch, err = open(true); err != nil { // before a connection can end
		return nil, err
	}
	return d, d.connect(ctx)
}

// connect makes the connections and gives them to the kernel.
func (d *KernelDevice) connect(ctx context.Context) error {
	var links []*kernelLink
	defer func() {
		for _, l := range links {
			closeQuietly(l.socket) // the kernel has its own, or there was an error
		}
	}()
	for {
		l, err := dialKernel(ctx, d.endpoint, &d.relays)
		if err != nil {
			return err
		}
		links = append(links, l)
		if d.session == nil {
			d.session = l.session
		} else if !l.session.same(d.session) {
			return errors.New("the server described the export differently on another connection")
		}
		if l.session.flags&flagCanMultiConn == 0 || len(links) >= d.o.Conns {
			break
		}
	}
	block, err := kernelBlock(d.session)
	if err != nil {
		return err
	}
	timeout := d.o.RequestTimeout
	if timeout <= 0 {
		timeout = requestTimeout
	}
	v := device{
		index: d.index, size: d.session.size, block: block, flags: d.session.flags,
		timeout: timeout, deadTime: d.o.DeadTimeout, backend: d.uri,
	}
	for _, l := range links {
		v.sockets = append(v.sockets, int(l.socket.Fd()))
	}
	d.index, err = d.driver.connect(v)
	return err
}

// kernelBlock is the size of the blocks that the device has: as small as the server
// allows, as what was written with blocks of 512 bytes cannot be read with larger ones.
func kernelBlock(s *session) (int64, error) {
	block := max(s.blocks.Minimum, minKernelBlock)
	switch {
	case block > maxKernelBlock:
		return 0, fmt.Errorf("the server wants blocks of %d bytes, and the kernel has at most %d", block, maxKernelBlock)
	case s.size == 0 || s.size%block != 0:
		return 0, fmt.Errorf("the export has %d bytes, which is not a number of blocks of %d: the kernel would hide the rest", s.size, block)
	}
	return block, nil
}

// Path is that of the device.
func (d *KernelDevice) Path() string { return KernelPath(d.index) }

// Size is the device's, in bytes.
func (d *KernelDevice) Size() int64 { return d.session.size }

// ReadOnly says whether the device refuses writes.
func (d *KernelDevice) ReadOnly() bool { return d.session.flags&flagReadOnly != 0 }

// Keep brings the kernel a fresh connection whenever one ends, until ctx ends, which is
// no error. It ends with an error that wraps [ErrDetached] when somebody else detaches
// the device, and with another when the server stays away for longer than DeadTimeout or
// has something else in the export's place. It is called at most once.
func (d *KernelDevice) Keep(ctx context.Context) error {
	dead, lost := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { lost <- d.listen(ctx, dead) })
	defer watching.Wait()
	defer closeQuietly(d.watch) // ends the wait for messages
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("nbd: watch %s: %w", d.Path(), err)
		case <-dead:
			if err := d.reconnect(ctx); err != nil {
				return fmt.Errorf("nbd: keep %s: %w", d.Path(), err)
			}
		case <-tick.C:
			if err := d.attached(); err != nil {
				return err
			}
		}
	}
}

// listen sends for each connection that the kernel says to have ended.
func (d *KernelDevice) listen(ctx context.Context, dead chan<- struct{}) error {
	for {
		l, err := d.watch.dead()
		if err != nil {
			return err
		}
		for _, index := range l {
			if index >= 0 && index != d.index {
				continue
			}
			select {
			case dead <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// attached reports ErrDetached if the device is not attached any more.
func (d *KernelDevice) attached() error {
	ok, err := d.driver.connected(d.index)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s", ErrDetached, d.Path())
	}
	return err
}

// reconnect brings one connection, and tries for as long as the kernel waits.
func (d *KernelDevice) reconnect(ctx context.Context) error {
	limit := time.Now().Add(d.o.DeadTimeout)
	for {
		l, err := dialKernel(ctx, d.endpoint, &d.relays)
		if err == nil {
			return d.replace(l)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // what ended is the keeping
		}
		if gone := d.attached(); gone != nil {
			return gone
		}
		if time.Now().After(limit) {
			return fmt.Errorf("the server has been away for longer than %v, and what waited for it has failed: %w", d.o.DeadTimeout, err)
		}
		pause := time.NewTimer(redialPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// replace gives the kernel a connection in the place of a dead one.
func (d *KernelDevice) replace(l *kernelLink) error {
	defer closeQuietly(l.socket) // the kernel has its own
	// An export may grow; the device stays as it is.
	if l.session.size < d.session.size || l.session.flags != d.session.flags || l.session.blocks != d.session.blocks {
		return errors.New("the server has another export under that name than before: detach the device")
	}
	err := d.driver.renew(d.index, d.uri, int(l.socket.Fd()))
	if err != nil {
		if gone := d.attached(); gone != nil {
			return gone
		}
	}
	return err
}

// Close frees what this program has of the device; it stays attached if it is, but with
// TLS, which this program speaks for it.
func (d *KernelDevice) Close() error {
	var err error
	for _, c := range []*driver{d.driver, d.watch} {
		if c != nil {
			err = errors.Join(err, ignoreClosed(c.Close()))
		}
	}
	return errors.Join(err, d.relays.Close())
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// KernelPath is the path of the device with an index.
func KernelPath(index int) string { return "/dev/nbd" + strconv.Itoa(index) }

// maxKernelIndex is what the kernel's numbers of devices have room for.
const maxKernelIndex = 1<<20 - 1

func kernelIndex(path string) (int, error) {
	number, ok := strings.CutPrefix(path, "/dev/nbd")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || n > maxKernelIndex || KernelPath(int(n)) != path {
		return 0, fmt.Errorf("nbd: %q is no device of the kernel's NBD driver: these are /dev/nbd0, /dev/nbd1 and so on", path)
	}
	return int(n), nil
}
