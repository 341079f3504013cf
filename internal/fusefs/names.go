package fusefs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	diskName   = "disk.raw"
	latestName = "latest"
	// timeLayout has no colons: they end a host name for scp and rsync and a
	// protocol for qemu-img, and some file servers forbid them.
	timeLayout = "2006-01-02T15-04-05Z"
	// maxName leaves room in the 255 bytes of a file name for "~" and an ID.
	maxName = 200
)

// Escape turns any string into a file name that neither file systems nor
// shells take amiss: letters and digits of any script and "_-.+=@," stay,
// every other byte becomes %XX, as does a leading dot. The empty string becomes
// "%". Different strings get different names, except that names of more than
// 200 bytes are cut.
func Escape(s string) string {
	if s == "" {
		return "%"
	}
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < maxName; {
		r, n := utf8.DecodeRuneInString(s[i:])
		if plainRune(r, n, i) {
			b.WriteString(s[i : i+n])
		} else {
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
		i += n
	}
	return b.String()
}

// plainRune reports whether the rune of n bytes at position i needs no escape.
func plainRune(r rune, n, i int) bool {
	switch {
	case r == utf8.RuneError && n <= 1:
		return false
	case r == '.':
		return i > 0
	case strings.ContainsRune("_-+=@,", r):
		return true
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r)
}

// volumeDir is what is shown for one volume.
type volumeDir struct {
	name    string
	id      string // volume ID
	backups []backupDir
}

type backupDir struct {
	name  string
	entry Entry
}

// arrange sorts a listing into directories: volumes by name, backups of a
// volume from the oldest to the newest. Names that would be equal get as much
// of the ID behind a "~" as tells them apart.
func arrange(entries []Entry) []volumeDir {
	byVolume := make(map[string][]Entry)
	for _, e := range entries {
		key := e.VolumeID
		if key == "" { // a source without volume IDs: the name has to do
			key = "name:" + e.Volume
		}
		byVolume[key] = append(byVolume[key], e)
	}
	vols := make([]volumeDir, 0, len(byVolume))
	for id, es := range byVolume {
		slices.SortFunc(es, func(a, b Entry) int {
			return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
		})
		v := volumeDir{id: id, name: Escape(es[len(es)-1].Volume)} // the newest name of a renamed volume
		for _, e := range es {
			v.backups = append(v.backups, backupDir{entry: e, name: e.Created.UTC().Format(timeLayout)})
		}
		distinguish(v.backups,
			func(b *backupDir) *string { return &b.name },
			func(b *backupDir) string { return b.entry.ID })
		vols = append(vols, v)
	}
	slices.SortFunc(vols, func(a, b volumeDir) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.id, b.id))
	})
	distinguish(vols,
		func(v *volumeDir) *string { return &v.name },
		func(v *volumeDir) string { return v.id })
	return vols
}

// distinguish appends to all equal names a "~" and a prefix of the ID: eight
// characters if they suffice, else the whole of it.
func distinguish[T any](items []T, name func(*T) *string, id func(*T) string) {
	for _, length := range []int{8, maxName} {
		groups := make(map[string][]int)
		for i := range items {
			n := *name(&items[i])
			groups[n] = append(groups[n], i)
		}
		again := false
		for _, members := range groups {
			if len(members) < 2 {
				continue
			}
			again = true
			for _, i := range members {
				n := name(&items[i])
				base, _, _ := strings.Cut(*n, "~") // Escape leaves no "~" in a name
				full := Escape(id(&items[i]))
				*n = base + "~" + full[:min(length, len(full))]
			}
		}
		if !again {
			return
		}
	}
}
