package nbd

import (
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
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
