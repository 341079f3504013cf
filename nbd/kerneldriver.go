package nbd

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
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
