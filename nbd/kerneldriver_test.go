package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// attribute is one as the kernel lays it out: length, type, value, filled up to four bytes.
func attribute(kind uint16, value ...any) []byte {
	var v []byte
	for _, p := range value {
		switch p := p.(type) {
		case uint8:
			v = append(v, p)
		case uint32:
			v = binary.NativeEndian.AppendUint32(v, p)
		case uint64:
			v = binary.NativeEndian.AppendUint64(v, p)
		case string:
			v = append(append(v, p...), 0)
		case []byte:
			v = append(v, p...)
		}
	}
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), v...)
	return append(b, make([]byte, -len(b)&3)...)
}

const nested = 1 << 15 // NLA_F_NESTED

// TestDriverMessages compares with linux/nbd-netlink.h, number by number.
func TestDriverMessages(t *testing.T) {
	v := device{
		index: 7, size: 1 << 40, block: 4096, flags: 0x1ed, timeout: 1500 * time.Millisecond, deadTime: time.Minute,
		backend: "nbd://h/x", sockets: []int{3, 70000},
	}
	got, err := v.encode()
	if err != nil {
		t.Fatal(err)
	}
	sockets := attribute(7|nested, attribute(1|nested, attribute(1, uint32(3))), attribute(1|nested, attribute(1, uint32(70000))))
	want := bytes.Join([][]byte{
		attribute(1, uint32(7)), attribute(2, uint64(1<<40)), attribute(3, uint64(4096)), attribute(4, uint64(2)),
		attribute(8, uint64(60)), attribute(5, uint64(0x1ed)), attribute(6, uint64(0)), attribute(10, "nbd://h/x"), sockets,
	}, nil)
	if !bytes.Equal(got, want) {
		t.Errorf("connect is\n%x, want\n%x", got, want)
	}
	v.index = -1
	if got, err = v.encode(); err != nil || !bytes.Equal(got, want[8:]) {
		t.Errorf("a device of the kernel's choice: %v\n%x, want\n%x", err, got, want[8:])
	}

	var asked genetlink.Message
	var flags netlink.HeaderFlags
	d := &driver{family: 77, conn: netlinkFunc(func(m genetlink.Message, family uint16, f netlink.HeaderFlags) ([]genetlink.Message, error) {
		if family != 77 || m.Header.Version != 1 {
			t.Errorf("family %d, version %d", family, m.Header.Version)
		}
		asked, flags = m, f
		return []genetlink.Message{{Header: genetlink.Header{Command: m.Header.Command}, Data: attribute(1, uint32(9))}}, nil
	})}
	check := func(what string, err error, command uint8, f netlink.HeaderFlags, data []byte) {
		t.Helper()
		if err != nil || asked.Header.Command != command || flags != f || !bytes.Equal(asked.Data, data) {
			t.Errorf("%s: %v, command %d, flags %v\n%x, want\n%x", what, err, asked.Header.Command, flags, asked.Data, data)
		}
	}
	index, err := d.connect(v)
	check("connect", err, 1, netlink.Request, want[8:])
	if index != 9 {
		t.Errorf("attached %d", index)
	}
	const acknowledged = netlink.Request | netlink.Acknowledge
	check("disconnect", d.disconnect(5), 2, acknowledged, attribute(1, uint32(5)))
	check("renew", d.renew(5, "b", 6), 3, acknowledged, bytes.Join([][]byte{
		attribute(1, uint32(5)), attribute(10, "b"), attribute(7|nested, attribute(1|nested, attribute(1, uint32(6)))),
	}, nil))
	_, err = d.connected(5)
	check("status", err, 5, netlink.Request, attribute(1, uint32(5)))
}

// netlinkFunc is a kernel that answers.
type netlinkFunc func(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)

func (f netlinkFunc) Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	return f(m, family, flags)
}

func (netlinkFunc) Receive() ([]genetlink.Message, []netlink.Message, error) { return nil, nil, nil }
func (netlinkFunc) Close() error                                             { return nil }

func TestDriverStatus(t *testing.T) {
	list := attribute(9, attribute(1, attribute(1, uint32(0)), attribute(2, uint8(1))), attribute(1, attribute(1, uint32(3)), attribute(2, uint8(0))))
	got, err := decodeDevices(list)
	if err != nil || len(got) != 2 || !got[0] || got[3] {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = decodeDevices(nil); err != nil || len(got) != 0 {
		t.Errorf("none: %v, %v", got, err)
	}
	if _, err := decodeIndex(nil); err == nil {
		t.Error("no index is one")
	}
}

func TestDriverRefusals(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EPERM:  "/dev/nbd2 cannot be attached or detached without the rights of root",
		unix.EBUSY:  "/dev/nbd2 is attached already: detach it first",
		unix.EINVAL: "the kernel's NBD driver refused /dev/nbd2, dmesg may say why",
	} {
		d := &driver{conn: netlinkFunc(func(genetlink.Message, uint16, netlink.HeaderFlags) ([]genetlink.Message, error) { return nil, errno })}
		_, cerr := d.connect(device{index: 2})
		_, serr := d.connected(2)
		for _, err := range []error{cerr, serr, d.renew(2, "", 1), d.disconnect(2)} {
			if err == nil || !errors.Is(err, errno) || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
	mute := &driver{conn: netlinkFunc(func(genetlink.Message, uint16, netlink.HeaderFlags) ([]genetlink.Message, error) { return nil, nil })}
	if _, err := mute.connect(device{}); err == nil {
		t.Error("a kernel that does not say which device it attached is understood")
	}
}

func TestKernelIndex(t *testing.T) {
	for path, want := range map[string]int{"/dev/nbd0": 0, "/dev/nbd15": 15, "/dev/nbd1048575": maxKernelIndex} {
		if got, err := kernelIndex(path); err != nil || got != want || KernelPath(got) != path {
			t.Errorf("%s: %d, %v", path, got, err)
		}
	}
	for _, path := range []string{"", "nbd0", "/dev/nbd", "/dev/nbd-1", "/dev/nbd01", "/dev/nbd+1", "/dev/nbd0p1", "/dev/sda", "/dev/nbd1048576", "/dev/nbd99999999999"} {
		if got, err := kernelIndex(path); err == nil {
			t.Errorf("%q is device %d", path, got)
		}
	}
}

func TestKernelBlock(t *testing.T) {
	for _, c := range []struct{ size, minimum, want int64 }{
		{1 << 20, 1, 512},
		{1 << 20, 512, 512},
		{1 << 20, 4096, 4096},
		{1<<20 + 512, 1, 512},
		{1<<20 + 512, 4096, 0},
		{1000, 1, 0},
		{0, 1, 0},
		{1 << 20, 8192, 0},
	} {
		got, err := kernelBlock(&session{size: c.size, blocks: BlockSizes{Minimum: c.minimum}})
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

// FuzzDriverAnswers: whatever the kernel says, there is an answer or an error.
func FuzzDriverAnswers(f *testing.F) {
	f.Add(attribute(1, uint32(3)))
	f.Add(attribute(9, attribute(1, attribute(1, uint32(0)), attribute(2, uint8(1)))))
	f.Add([]byte{5, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		if index, err := decodeIndex(p); err == nil && (index < 0 || index > 1<<32-1) {
			t.Errorf("index %d", index)
		}
		if _, err := decodeDevices(p); err != nil {
			return
		}
	})
}
