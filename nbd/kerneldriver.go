package nbd

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What the kernel's NBD driver speaks by generic netlink: linux/nbd-netlink.h.
const (
	driverFamily = "nbd"
	driverGroup  = "nbd_mc_group"

	driverConnect     = 1
	driverDisconnect  = 2
	driverReconfigure = 3
	driverLinkDead    = 4 // to the group: a connection has ended
	driverStatus      = 5

	attrIndex       = 1 // u32
	attrSize        = 2 // u64, bytes
	attrBlockSize   = 3 // u64, bytes
	attrTimeout     = 4 // u64, seconds
	attrServerFlags = 5 // u64, as the server sent them
	attrClientFlags = 6 // u64
	attrSockets     = 7 // list of attrSocket
	attrDeadTimeout = 8 // u64, seconds
	attrDevices     = 9 // list of attrDevice
	attrBackend     = 10

	attrSocket   = 1 // with an attrSocketFD
	attrSocketFD = 1 // u32

	attrDevice          = 1 // with the next two
	attrDeviceIndex     = 1 // u32
	attrDeviceConnected = 2 // u8
)

// netlinkConn is what of a *genetlink.Conn is used.
type netlinkConn interface {
	Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)
	Receive() ([]genetlink.Message, []netlink.Message, error)
	Close() error
}

// driver is a conversation with the kernel's driver. Its methods are not called
// concurrently.
type driver struct {
	conn   netlinkConn
	family uint16
}

// opener makes one; with watch it hears of connections that end.
type opener func(watch bool) (*driver, error)

// openDriver is the opener of this machine's.
func openDriver(watch bool) (*driver, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("speak to the kernel: %w", err)
	}
	f, err := c.GetFamily(driverFamily)
	if err == nil && watch {
		err = join(c, f)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the kernel has no NBD driver: load it with \"modprobe nbd\"")
		}
		return nil, errors.Join(err, c.Close())
	}
	return &driver{conn: c, family: f.ID}, nil
}

func join(c *genetlink.Conn, f genetlink.Family) error {
	for _, g := range f.Groups {
		if g.Name == driverGroup {
			return c.JoinGroup(g.ID)
		}
	}
	return errors.New("the kernel's NBD driver does not tell when connections end: it is too old")
}

// device is what the driver is told when a device is attached, or gets other sockets.
type device struct {
	index    int // -1: the driver chooses
	size     int64
	block    int64
	flags    uint16
	timeout  time.Duration // of a request
	deadTime time.Duration // for which requests wait when no connection is left
	backend  string        // another is refused when sockets are renewed
	sockets  []int
}

// connect attaches a device and returns its index.
func (d *driver) connect(v device) (int, error) {
	data, err := v.encode()
	if err != nil {
		return 0, err
	}
	// The answer is the acknowledgement.
	answers, err := d.conn.Execute(d.message(driverConnect, data), d.family, netlink.Request)
	if err != nil {
		return 0, explain(v.index, err)
	}
	for _, m := range answers {
		if m.Header.Command == driverConnect {
			return decodeIndex(m.Data)
		}
	}
	return 0, errors.New("the kernel did not say which device it attached")
}

// renew gives the driver one socket in the place of one that is dead. Without such
// one it takes none, which is no error.
func (d *driver) renew(index int, backend string, socket int) error {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index)) //nolint:gosec // not negative
	e.String(attrBackend, backend)
	encodeSockets(e, []int{socket})
	return d.tell(driverReconfigure, index, e)
}

func (d *driver) disconnect(index int) error {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index)) //nolint:gosec // not negative
	return d.tell(driverDisconnect, index, e)
}

// tell sends what is only acknowledged.
func (d *driver) tell(command uint8, index int, e *netlink.AttributeEncoder) error {
	data, err := e.Encode()
	if err != nil {
		return err
	}
	if _, err = d.conn.Execute(d.message(command, data), d.family, netlink.Request|netlink.Acknowledge); err != nil {
		return explain(index, err)
	}
	return nil
}

// connected says whether a device is attached; one that there is not is not.
func (d *driver) connected(index int) (bool, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index)) //nolint:gosec // not negative
	data, err := e.Encode()
	if err != nil {
		return false, err
	}
	answers, err := d.conn.Execute(d.message(driverStatus, data), d.family, netlink.Request)
	if err != nil {
		return false, explain(index, err)
	}
	for _, m := range answers {
		if m.Header.Command != driverStatus {
			continue
		}
		devices, err := decodeDevices(m.Data)
		if err != nil || devices[index] {
			return err == nil, err
		}
	}
	return false, nil
}

// dead waits until connections end and returns whose: one index for each. What got
// lost on the way counts as anybody's, which is -1.
func (d *driver) dead() ([]int, error) {
	messages, _, err := d.conn.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		return []int{-1}, nil
	}
	if err != nil {
		return nil, err
	}
	var l []int
	for _, m := range messages {
		if m.Header.Command != driverLinkDead {
			continue
		}
		index, err := decodeIndex(m.Data)
		if err != nil {
			return nil, err
		}
		l = append(l, index)
	}
	return l, nil
}

// Close ends the conversation, and a wait in dead.
func (d *driver) Close() error { return d.conn.Close() }

func (d *driver) message(command uint8, data []byte) genetlink.Message {
	return genetlink.Message{Header: genetlink.Header{Command: command, Version: 1}, Data: data}
}

func (v device) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if v.index >= 0 {
		e.Uint32(attrIndex, uint32(v.index)) //nolint:gosec // not negative
	}
	e.Uint64(attrSize, uint64(v.size))       //nolint:gosec // not negative
	e.Uint64(attrBlockSize, uint64(v.block)) //nolint:gosec // not negative
	e.Uint64(attrTimeout, seconds(v.timeout))
	e.Uint64(attrDeadTimeout, seconds(v.deadTime))
	e.Uint64(attrServerFlags, uint64(v.flags))
	// No flag: the device stays for the next when this one is detached, and closing
	// it does not detach it.
	e.Uint64(attrClientFlags, 0)
	e.String(attrBackend, v.backend)
	encodeSockets(e, v.sockets)
	return e.Encode()
}

func encodeSockets(e *netlink.AttributeEncoder, sockets []int) {
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, fd := range sockets {
			list.Nested(attrSocket, func(s *netlink.AttributeEncoder) error {
				s.Uint32(attrSocketFD, uint32(fd)) //nolint:gosec // a descriptor
				return nil
			})
		}
		return nil
	})
}

// seconds rounds up: less than one is one, and only 0 is none.
func seconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	return uint64((d + time.Second - 1) / time.Second)
}

func decodeIndex(data []byte) (int, error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, fmt.Errorf("what the kernel says is not understood: %w", err)
	}
	index, found := uint32(0), false
	for d.Next() {
		if d.Type() == attrIndex {
			index, found = d.Uint32(), true
		}
	}
	if err := d.Err(); err != nil || !found {
		return 0, errors.Join(errors.New("the kernel did not say which device it means"), err)
	}
	return int(index), nil
}

// decodeDevices returns which devices are attached, of those that a status is about.
func decodeDevices(data []byte) (map[int]bool, error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, fmt.Errorf("what the kernel says is not understood: %w", err)
	}
	devices := map[int]bool{}
	for d.Next() {
		if d.Type() != attrDevices {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(v *netlink.AttributeDecoder) error {
					index, connected := -1, false
					for v.Next() {
						switch v.Type() {
						case attrDeviceIndex:
							index = int(v.Uint32())
						case attrDeviceConnected:
							connected = v.Uint8() != 0
						}
					}
					devices[index] = connected
					return nil
				})
			}
			return nil
		})
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("what the kernel says is not understood: %w", err)
	}
	return devices, nil
}

// explain says what the driver means by an error.
func explain(index int, err error) error {
	name := "a device"
	if index >= 0 {
		name = KernelPath(index)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s cannot be attached or detached without the rights of root (CAP_SYS_ADMIN): %w", name, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is attached already: detach it first, or leave the choice to the kernel: %w", name, err)
	default:
		return fmt.Errorf("the kernel's NBD driver refused %s, dmesg may say why: %w", name, err)
	}
}
