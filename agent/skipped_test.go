package agent

import (
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/restore"
)

// What is told block by block and in any order comes out as few ranges, and never
// as more than the bound.
func TestSkipped(t *testing.T) {
	var s Skipped
	var o restore.Options
	s.Into(&o)
	why := errors.New("lost")
	for n := int64(maxSkipped) * 4; n > 0; n-- { // one run, backward
		o.Skipped(n*100, 100, why)
	}
	o.Skipped(0, 50, why)
	if l := s.Ranges(); len(l) != 2 || l[0].Length != 50 || l[1].Offset != 100 || l[1].Length != 400*maxSkipped {
		t.Errorf("%d ranges, %+v", len(l), l[:min(len(l), 3)])
	}
	for n := range int64(maxTold) {
		o.Skipped(1<<40+n*1000, 1, why)
	}
	if l := s.Ranges(); len(l) != maxSkipped || l[0].Offset != 0 {
		t.Errorf("%d ranges", len(l))
	}
}
