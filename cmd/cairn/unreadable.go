package main

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/repository"
)

// unreadable is the part of a check's JSON that names what of a backup cannot be
// read: because it is damaged for good, or because its stores are down now.
type unreadable struct {
	Bytes  int64             `json:"unreadable_bytes"`
	Blocks int64             `json:"unreadable_blocks"`
	Ranges []unreadableRange `json:"unreadable"`      // in order, at most maxUnreadable
	More   int               `json:"unreadable_more"` // ranges that are not named
}

// unreadableRange is a run of blocks, and where it is in the volume.
type unreadableRange struct {
	Block  int64 `json:"block"`
	Count  int64 `json:"blocks"`
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// maxUnreadable bounds the ranges of one backup in JSON.
const maxUnreadable = 10_000

// unreadableOf converts the ranges of a report. The last block of a volume may be
// shorter than the others.
func unreadableOf(b repository.BackupReport) unreadable {
	u := unreadable{Ranges: []unreadableRange{}}
	for _, d := range b.Damaged {
		off := d.First * b.BlockSize
		r := unreadableRange{d.First, d.Count, off, min(d.Count*b.BlockSize, b.Backup.Size-off)}
		u.Bytes += r.Length
		u.Blocks += r.Count
		if len(u.Ranges) == maxUnreadable {
			u.More++
			continue
		}
		u.Ranges = append(u.Ranges, r)
	}
	return u
}

// lines says it to people: a count, and the first ranges.
func (u unreadable) lines() []string {
	const most = 20
	if u.Blocks == 0 {
		return nil
	}
	l := []string{fmt.Sprintf("cannot be read: %d blocks, %s", u.Blocks, exact(u.Bytes))}
	for i, r := range u.Ranges {
		if i == most {
			return append(l, fmt.Sprintf("  and %d more ranges", len(u.Ranges)+u.More-most))
		}
		l = append(l, fmt.Sprintf("  blocks %d to %d: bytes %d to %d", r.Block, r.Block+r.Count-1, r.Offset, r.Offset+r.Length))
	}
	return l
}
