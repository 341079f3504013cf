package blockmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The activity log names the regions of the newest segment whose bits may be
// newer in memory than on disk. Each record holds all of them, so the newest
// record alone counts; the older ones prove that none was lost before it. A
// record is one page, there is one in flight at a time, and it goes where the
// oldest was: after a power failure that page, and no other, may be a mixture
// of the two.
const (
	activityName   = "activity"
	activitySlots  = 16
	activityMagic  = 0x43414C47 // "CALG"
	activityHeader = 40
	maxHotRegions  = 1200 // always fit into a record, see FORMAT.md
	maxRegions     = 1 << 29
)

var errActivity = errors.New("the activity log is damaged")

// activity is a record: the state of the log.
type activity struct {
	epoch   uint64  // of the newest segment at the time
	exact   bool    // the bits on disk are exact, and
	sum     uint32  // this is their checksum
	regions []int64 // in ascending order; none when exact
}

// encodeActivity returns the content of a record's page.
func encodeActivity(a activity) ([]byte, error) {
	data := make([]byte, activityHeader, pageData+binary.MaxVarintLen64)
	next := int64(0)
	for _, r := range a.regions {
		data = binary.AppendUvarint(data, uint64(r-next)) //nolint:gosec // Ascending.
		if next = r + 1; len(data) > pageData {
			return nil, fmt.Errorf("%d active regions do not fit into a record", len(a.regions))
		}
	}
	data = append(data, make([]byte, pageData-len(data))...)
	binary.BigEndian.PutUint32(data[0:], activityMagic)
	binary.BigEndian.PutUint16(data[4:], 1)
	if a.exact {
		data[7] = 1
	}
	binary.BigEndian.PutUint64(data[8:], a.epoch)
	binary.BigEndian.PutUint32(data[16:], a.sum)
	binary.BigEndian.PutUint32(data[20:], uint32(len(a.regions))) //nolint:gosec // At most pageData.
	binary.BigEndian.PutUint32(data[36:], activityCheck(data))
	return data, nil
}

func activityCheck(data []byte) uint32 {
	return crc32.Update(crc32.Checksum(data[:36], castagnoli), castagnoli, data[activityHeader:pageData])
}

// decodeActivity is the inverse of encodeActivity; everything else than what
// that writes is an error.
func decodeActivity(data []byte) (activity, error) {
	if len(data) != pageData || binary.BigEndian.Uint32(data) != activityMagic || binary.BigEndian.Uint32(data[36:]) != activityCheck(data) {
		return activity{}, errActivity
	}
	if v := binary.BigEndian.Uint16(data[4:]); v != 1 {
		return activity{}, fmt.Errorf("%w: version %d", errActivity, v)
	}
	a := activity{
		epoch: binary.BigEndian.Uint64(data[8:]),
		exact: data[7] == 1,
		sum:   binary.BigEndian.Uint32(data[16:]),
	}
	count := binary.BigEndian.Uint32(data[20:])
	rest, next := data[activityHeader:], int64(0)
	for range min(count, pageData) {
		gap, n := binary.Uvarint(rest)
		if n <= 0 || gap >= maxRegions || next+int64(gap) >= maxRegions {
			return activity{}, errActivity
		}
		a.regions = append(a.regions, next+int64(gap))
		rest, next = rest[n:], next+int64(gap)+1
	}
	// Whatever else differs from the one way to write this is damage, too.
	if again, err := encodeActivity(a); err != nil || !bytes.Equal(again, data) || a.exact && count > 0 {
		return activity{}, errActivity
	}
	return a, nil
}

// scanActivity reads a whole log: the newest record, its sequence number, and
// whether the next record's page was torn when the power failed. The error,
// errActivity, means that regions may have been active that nothing names.
func scanActivity(s pageSeal, log []byte) (newest activity, seq uint64, torn bool, err error) {
	if len(log) != activitySlots*pageSize {
		return activity{}, 0, false, fmt.Errorf("%w: %d bytes long", errActivity, len(log))
	}
	var seqs [activitySlots][pageSectors]uint64
	data, page := make([]byte, pageData), make([]byte, pageData)
	for i := range activitySlots {
		var bad uint8
		seqs[i], bad = s.decode(page, log[i*pageSize:(i+1)*pageSize], int64(i))
		if bad != 0 {
			return activity{}, 0, false, fmt.Errorf("%w: page %d", errActivity, i)
		}
		if first := seqs[i][0]; whole(seqs[i]) && first%activitySlots == uint64(i) && first > seq {
			seq = first
			copy(data, page)
		}
	}
	if seq < activitySlots {
		return activity{}, 0, false, fmt.Errorf("%w: no record", errActivity)
	}
	for back := uint64(1); back < activitySlots; back++ {
		slot := seqs[(seq-back)%activitySlots]
		if whole(slot) && slot[0] == seq-back {
			continue
		}
		for _, q := range slot {
			if back != activitySlots-1 || q != seq-back && q != seq+1 {
				return activity{}, 0, false, fmt.Errorf("%w: record %d is missing before record %d", errActivity, seq-back, seq)
			}
		}
		torn = true
	}
	newest, err = decodeActivity(data)
	return newest, seq, torn, err
}

func whole(seqs [pageSectors]uint64) bool {
	for _, q := range seqs[1:] {
		if q != seqs[0] {
			return false
		}
	}
	return true
}

// activityLog is the open log.
type activityLog struct {
	fsys vfs.FS
	name string
	seal pageSeal
	file vfs.File // nil when it must be replaced before it can be written
	seq  uint64   // of the newest record
	page []byte
}

func newActivityLog(fsys vfs.FS, dir string, volume [16]byte) *activityLog {
	return &activityLog{
		fsys: fsys,
		name: filepath.Join(dir, activityName),
		seal: pageSeal{volume: volume, kind: kindLog},
		page: make([]byte, pageSize),
	}
}

// append makes a record durable: all before it is replaced. When the log cannot
// be written a new one takes its place, so that a passing error of the disk
// passes.
func (l *activityLog) append(a activity) error {
	if l.file == nil {
		return l.replace(a)
	}
	data, err := encodeActivity(a)
	if err != nil {
		return err
	}
	seq := l.seq + 1
	slot := int64(seq % activitySlots)
	l.seal.encode(l.page, slot, seq, data)
	if _, err := l.file.WriteAt(l.page, slot*pageSize); err != nil {
		// What is in that page now nobody knows: it must not be written again.
		_ = l.file.Close() // It was written with O_DSYNC: nothing is lost.
		l.file = nil
		if rerr := l.replace(a); rerr != nil {
			return fmt.Errorf("write the activity log: %w", errors.Join(err, rerr))
		}
		return nil
	}
	l.seq = seq
	return nil
}

// replace atomically puts a log in place whose records are all a.
func (l *activityLog) replace(a activity) error {
	if err := l.close(); err != nil {
		return err
	}
	data, err := encodeActivity(a)
	if err != nil {
		return err
	}
	first := (l.seq/activitySlots + 2) * activitySlots
	log := make([]byte, activitySlots*pageSize)
	for i := range int64(activitySlots) {
		l.seal.encode(log[i*pageSize:(i+1)*pageSize], i, first+uint64(i), data)
	}
	if err := vfs.WriteFile(l.fsys, l.name, log, 0o600); err != nil {
		return fmt.Errorf("replace the activity log: %w", err)
	}
	l.seq = first + activitySlots - 1
	return l.open()
}

// open opens the log that is there for further records.
func (l *activityLog) open() error {
	f, err := l.fsys.OpenFile(l.name, os.O_RDWR|syscall.O_DSYNC, 0)
	if err != nil {
		return fmt.Errorf("open the activity log: %w", err)
	}
	l.file = f
	return nil
}

func (l *activityLog) close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return fmt.Errorf("close the activity log: %w", err)
	}
	return nil
}
