package repocopy

import (
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/repository"
)

// volumeKey names a volume in both repositories.
type volumeKey struct{ project, id string }

func volumeOf(b repository.Backup) volumeKey { return volumeKey{b.Project, b.VolumeID} }

// sortNewest notes what the destination has of each volume before anything is
// copied: a run that copies old backups must not take them for a limit.
func (c *copier) sortNewest() {
	c.newest = make(map[volumeKey][]repository.Backup)
	for _, have := range []map[string]repository.Backup{c.have, c.trash} {
		for b := range maps.Values(have) {
			c.newest[volumeOf(b)] = append(c.newest[volumeOf(b)], b)
		}
	}
	for _, l := range c.newest {
		slices.SortFunc(l, func(a, b repository.Backup) int { return b.Created.Compare(a.Created) })
	}
}

// older says whether the destination had a backup of the volume that was made
// behind b. What b descends from was made before it, whatever the clocks said.
func (c *copier) older(b repository.Backup) bool {
	ancestors := map[string]bool{b.ID: true}
	for id := b.Parent; id != "" && !ancestors[id]; id = c.originals[id].Parent {
		ancestors[id] = true
	}
	for _, there := range c.newest[volumeOf(b)] {
		if !there.Created.After(b.Created) {
			return false
		}
		if !ancestors[there.ID] {
			return true
		}
	}
	return false
}
