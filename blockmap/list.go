package blockmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

const (
	listMagic    = "CAIRNCPL"
	listVersion  = 1
	listHeader   = 80
	maxListSize  = 16 << 20
	maxSegments  = 1 << 16
	maxNameSize  = 255
	maxDoubtSize = 1 << 10

	// What a tracker keeps in memory is bounded by these.
	maxTrackedBlocks = 1 << 35
	minRegionSize    = 4 << 10
	maxRegionSize    = 1 << 40
)

var errList = errors.New("the list of checkpoints is damaged")

// list is the state of a tracker that changes with its checkpoints only.
type list struct {
	volume     [16]byte
	geometry   Geometry
	regionSize int64
	generation uint64 // grows with each write of the list
	epoch      uint64 // grows with each change of the newest segment
	nextID     uint64 // of the next segment
	segments   []segment
}

// segment is a piece of history: what was written from its position to the
// next segment's, or until now.
type segment struct {
	id     uint64  // names its file; 0 = it has none, and needs none
	blocks int64   // whose bits it has: the most that the volume had by then
	sum    uint32  // checksum of its bits, once it is closed
	doubt  string  // why all blocks count as written; "" = the bits tell
	names  []label // of its position
}

// label is one name of a position.
type label struct {
	name    string
	created time.Time
}

// newest returns the segment that writes go to.
func (l *list) newest() *segment { return &l.segments[len(l.segments)-1] }

// idle tells whether no checkpoint needs to know of writes.
func (l *list) idle() bool { return len(l.segments) == 1 && len(l.segments[0].names) == 0 }

// clone returns a copy of which the segments and names may be changed.
func (l *list) clone() *list {
	c := *l
	c.segments = make([]segment, len(l.segments))
	for i, s := range l.segments {
		s.names = append([]label(nil), s.names...)
		c.segments[i] = s
	}
	return &c
}

// find returns the index of the segment whose position has a name, and which
// of its names it is.
func (l *list) find(name string) (seg, at int, ok bool) {
	for i, s := range l.segments {
		for j, n := range s.names {
			if n.name == name {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}

// mostBlocks returns the largest number of blocks of any segment.
func (l *list) mostBlocks() int64 {
	n := l.geometry.Blocks()
	for _, s := range l.segments {
		n = max(n, s.blocks)
	}
	return n
}

// encode returns the content of the list's file.
func (l *list) encode() []byte {
	b := make([]byte, 0, listHeader+64*len(l.segments))
	b = append(b, listMagic...)
	b = binary.BigEndian.AppendUint16(b, listVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(l.geometry.BlockSize)) //nolint:gosec // Validated.
	b = append(b, l.volume[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.geometry.Size)) //nolint:gosec // Validated.
	b = binary.BigEndian.AppendUint64(b, uint64(l.regionSize))    //nolint:gosec // Validated.
	b = binary.BigEndian.AppendUint64(b, l.generation)
	b = binary.BigEndian.AppendUint64(b, l.epoch)
	b = binary.BigEndian.AppendUint64(b, l.nextID)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.segments))) //nolint:gosec // Limited.
	for _, s := range l.segments {
		b = binary.BigEndian.AppendUint64(b, s.id)
		b = binary.BigEndian.AppendUint64(b, uint64(s.blocks)) //nolint:gosec // Validated.
		b = binary.BigEndian.AppendUint32(b, s.sum)
		b = appendText(b, s.doubt)
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.names))) //nolint:gosec // Limited.
		for _, n := range s.names {
			b = binary.BigEndian.AppendUint64(b, uint64(n.created.UnixNano()))
			b = appendText(b, n.name)
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func appendText(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // Limited.
	return append(b, s...)
}

// decodeList is the inverse of encode. The error is errList.
func decodeList(b []byte) (*list, error) {
	if len(b) < listHeader+4 || !bytes.HasPrefix(b, []byte(listMagic)) {
		return nil, errList
	}
	body := b[:len(b)-4]
	if binary.BigEndian.Uint32(b[len(body):]) != crc32.Checksum(body, castagnoli) {
		return nil, fmt.Errorf("%w: wrong checksum", errList)
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != listVersion {
		return nil, fmt.Errorf("%w: version %d is unknown", errList, v)
	}
	l := &list{
		geometry:   Geometry{BlockSize: int(binary.BigEndian.Uint32(b[12:])), Size: int64(binary.BigEndian.Uint64(b[32:]))}, //nolint:gosec // Validated below.
		regionSize: int64(binary.BigEndian.Uint64(b[40:])),                                                                  //nolint:gosec // Validated below.
		generation: binary.BigEndian.Uint64(b[48:]),
		epoch:      binary.BigEndian.Uint64(b[56:]),
		nextID:     binary.BigEndian.Uint64(b[64:]),
	}
	copy(l.volume[:], b[16:])
	r := &listReader{b: body[listHeader:]}
	for range min(binary.BigEndian.Uint32(b[76:]), maxSegments) {
		l.segments = append(l.segments, r.segment())
		if r.short {
			break
		}
	}
	if r.short || len(r.b) > 0 || !bytes.Equal(l.encode(), b) {
		return nil, fmt.Errorf("%w: it does not add up", errList)
	}
	if err := l.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errList, err)
	}
	return l, nil
}

// listReader takes fields off a buffer; after the end it returns zeros.
type listReader struct {
	b     []byte
	short bool
}

func (r *listReader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *listReader) text() string {
	return string(r.take(int(binary.BigEndian.Uint16(r.take(2)))))
}

func (r *listReader) segment() segment {
	s := segment{
		id:     binary.BigEndian.Uint64(r.take(8)),
		blocks: int64(binary.BigEndian.Uint64(r.take(8))), //nolint:gosec // Validated later.
		sum:    binary.BigEndian.Uint32(r.take(4)),
		doubt:  r.text(),
	}
	for range binary.BigEndian.Uint16(r.take(2)) {
		created := int64(binary.BigEndian.Uint64(r.take(8))) //nolint:gosec // A pattern of bits.
		s.names = append(s.names, label{name: r.text(), created: time.Unix(0, created)})
		if r.short {
			break
		}
	}
	return s
}

// validate reports what no tracker wrote.
func (l *list) validate() error {
	if err := l.geometry.Validate(); err != nil {
		return err
	}
	if err := checkRegions(l.geometry, l.regionSize); err != nil {
		return err
	}
	if len(l.segments) == 0 {
		return errors.New("no segment")
	}
	names, ids := map[string]bool{}, map[uint64]bool{}
	for i, s := range l.segments {
		newest := i == len(l.segments)-1
		switch {
		case s.blocks < 0 || s.blocks > maxTrackedBlocks, newest && s.blocks < l.mostBlocks():
			return fmt.Errorf("segment %d of %d blocks", i, s.blocks)
		case s.id >= l.nextID || s.id != 0 && ids[s.id]:
			return fmt.Errorf("segment %d in file %d", i, s.id)
		case s.id == 0 && !l.idle() && (newest || s.doubt == ""):
			return fmt.Errorf("segment %d without a file", i)
		case len(s.names) == 0 && !l.idle():
			return fmt.Errorf("segment %d without a name", i)
		}
		ids[s.id] = true
		for _, n := range s.names {
			if names[n.name] || n.name == "" || len(n.name) > maxNameSize {
				return fmt.Errorf("checkpoint %q", n.name)
			}
			names[n.name] = true
		}
	}
	return nil
}

// checkRegions reports sizes that a tracker cannot take.
func checkRegions(g Geometry, regionSize int64) error {
	if regionSize < minRegionSize || regionSize > maxRegionSize || regionSize&(regionSize-1) != 0 || regionSize < int64(g.BlockSize) {
		return fmt.Errorf("%w: region size %d is not a power of two between %d bytes (or the block size) and %d", ErrGeometry, regionSize, minRegionSize, int64(maxRegionSize))
	}
	if g.Blocks() > maxTrackedBlocks || (g.Size+regionSize-1)/regionSize > maxRegions {
		return fmt.Errorf("%w: %d bytes are too many to track in blocks of %d and regions of %d bytes", ErrGeometry, g.Size, g.BlockSize, regionSize)
	}
	return nil
}
