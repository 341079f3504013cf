package repocopy

import (
	"maps"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/repository"
)

// volumeKey names a volume in both repositories.
type volumeKey struct{ project, id string }

func volumeOf(b repository.Backup) volumeKey { return volumeKey{b.Project, b.VolumeID} }

// ages says when backups were made: not before any that they descend from, whatever
// the clocks said. So a run that ends anywhere has copied nothing that makes another
// of its backups an older one.
type ages struct {
	known map[string]repository.Backup
	memo  map[string]time.Time
}

// newAges knows the backups of all the sets; the first that has an ID counts.
func newAges(sets ...map[string]repository.Backup) *ages {
	a := &ages{known: make(map[string]repository.Backup), memo: make(map[string]time.Time)}
	for _, set := range slices.Backward(sets) {
		maps.Copy(a.known, set)
	}
	return a
}

// of returns when b was made.
func (a *ages) of(b repository.Backup) time.Time {
	line := []repository.Backup{b}
	seen := map[string]bool{b.ID: true}
	var latest time.Time
	for {
		last := line[len(line)-1]
		if t, ok := a.memo[last.ID]; ok {
			latest = t
			break
		}
		p, ok := a.known[last.Parent]
		if !ok || seen[p.ID] { // no parent, or a ring, which no writer makes
			break
		}
		seen[p.ID] = true
		line = append(line, p)
	}
	for _, x := range slices.Backward(line) {
		if x.Created.After(latest) {
			latest = x.Created
		}
		a.memo[x.ID] = latest
	}
	return latest
}

// noteNewest notes the newest that the destination has of each volume before anything
// is copied: a run that copies old backups must not take them for a limit.
func (c *copier) noteNewest() {
	c.ages = newAges(c.originals, c.have, c.trash)
	c.newest = make(map[volumeKey]time.Time)
	for _, there := range []map[string]repository.Backup{c.have, c.trash} {
		for _, b := range there {
			if t := c.ages.of(b); t.After(c.newest[volumeOf(b)]) {
				c.newest[volumeOf(b)] = t
			}
		}
	}
}

// older says whether the destination had a backup of the volume that was made
// behind b.
func (c *copier) older(b repository.Backup) bool {
	return c.newest[volumeOf(b)].After(c.ages.of(b))
}
