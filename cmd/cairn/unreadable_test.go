package main

import (
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/repository"
)

// What a check names is exact up to the short last block, and bounded: what is
// not named is counted.
func TestUnreadable(t *testing.T) {
	b := repository.BackupReport{Backup: repository.Backup{Size: 3*4096 + 1000}, BlockSize: 4096}
	b.Damaged = []repository.DamagedRange{{First: 0, Count: 1}, {First: 2, Count: 2}}
	u := unreadableOf(b)
	if u.Blocks != 3 || u.Bytes != 2*4096+1000 || u.More != 0 || len(u.Ranges) != 2 || u.Ranges[1] != (unreadableRange{2, 2, 8192, 5096}) {
		t.Errorf("%+v", u)
	}
	if l := strings.Join(u.lines(), "\n"); !strings.Contains(l, "blocks 2 to 3: bytes 8192 to 13288") {
		t.Error(l)
	}
	if l := unreadableOf(repository.BackupReport{}).lines(); l != nil {
		t.Error(l)
	}
	const ranges = maxUnreadable + 7
	b = repository.BackupReport{Backup: repository.Backup{Size: 2 * ranges * 4096}, BlockSize: 4096}
	for n := range int64(ranges) {
		b.Damaged = append(b.Damaged, repository.DamagedRange{First: 2 * n, Count: 1})
	}
	u = unreadableOf(b)
	if u.Blocks != ranges || u.Bytes != ranges*4096 || len(u.Ranges) != maxUnreadable || u.More != 7 {
		t.Errorf("%d blocks, %d bytes, %d ranges, %d more", u.Blocks, u.Bytes, len(u.Ranges), u.More)
	}
	l := u.lines()
	if len(l) != 22 || !strings.Contains(l[21], "and 9987 more ranges") {
		t.Errorf("%d lines, the last: %s", len(l), l[len(l)-1])
	}
}
