package repocopy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/repository"
)

// ordered returns the backups, each once, oldest first and parents before their
// children whatever the clocks said.
func ordered(backups []repository.Backup, made *ages) []repository.Backup {
	l := slices.Clone(backups)
	slices.SortStableFunc(l, func(a, b repository.Backup) int {
		return cmp.Or(made.of(a).Compare(made.of(b)), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	byID := make(map[string]repository.Backup, len(l))
	for _, b := range l {
		byID[b.ID] = b
	}
	out := make([]repository.Backup, 0, len(l))
	done := make(map[string]bool, len(l))
	for _, b := range l {
		// Its ancestors that are asked for and not out yet, the nearest first. A
		// ring, which no writer makes, ends where it began.
		var line []repository.Backup
		for x, ok := b, true; ok && !done[x.ID]; x, ok = byID[x.Parent] {
			done[x.ID] = true
			line = append(line, x)
		}
		slices.Reverse(line)
		out = append(out, line...)
	}
	return out
}

// base returns the ID of the backup from which b's copy starts, empty for none: one
// of the same volume that both repositories have. The nearest of its ancestors is
// best, else the one that is nearest in time.
func (c *copier) base(b repository.Backup) string {
	fits := func(id string) (repository.Backup, bool) {
		there, ok := c.have[id]
		here, also := c.originals[id]
		same := here.Project == b.Project && here.VolumeID == b.VolumeID && here.BlockSize == b.BlockSize &&
			there.Project == b.Project && there.VolumeID == b.VolumeID && there.BlockSize == b.BlockSize &&
			here.Size == there.Size && here.Created.Equal(there.Created)
		return here, ok && also && same && id != b.ID
	}
	id := b.Parent
	for range len(c.originals) { // no further than around a ring
		if id == "" {
			break
		}
		if p, ok := fits(id); ok {
			return p.ID
		}
		id = c.originals[id].Parent
	}
	var best repository.Backup
	var least time.Duration
	found := false
	for id := range c.have {
		p, ok := fits(id)
		if !ok {
			continue
		}
		if away := b.Created.Sub(p.Created).Abs(); !found || away < least || away == least && p.ID < best.ID {
			best, least, found = p, away, true
		}
	}
	return best.ID
}
