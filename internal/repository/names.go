package repository

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Names of objects; FORMAT.md lists them.
const (
	storeName        = "store"
	keyPrefix        = "keys/"
	removedKeyPrefix = "removed-keys/"
	membersPrefix    = "members/"
	packPrefix       = "packs/"
	rootPrefix       = "backups/"
	sessionPrefix    = "sessions/"
	deletedPrefix    = "deleted/"
	purgedPrefix     = "purged/"
	prunePrefix      = "prune/"
	owedPrefix       = "owed/"
	forwardPrefix    = "forwards/"
	probePrefix      = "probe/"
	changePrefix     = "changes/"
	damagedPrefix    = "damaged/"
	capablePrefix    = "capabilities/"
	openLeaf         = "open"
	verdictLeaf      = "verdict"
	certificateLeaf  = "certificate"
	condemnedLeaf    = "condemned"
	doneLeaf         = "done"
	closedLeaf       = "closed"
	packsPerFolder   = 1024
)

func keyName(id ident) string        { return keyPrefix + id.String() }
func removedKeyName(id ident) string { return removedKeyPrefix + id.String() }
func membersName(v uint64) string    { return membersPrefix + strconv.FormatUint(v, 10) }
func openName(s ident) string        { return sessionPrefix + s.String() + "/" + openLeaf }
func verdictName(s ident) string     { return sessionPrefix + s.String() + "/" + verdictLeaf }
func certificateName(s ident) string { return sessionPrefix + s.String() + "/" + certificateLeaf }
func deletedName(s ident) string     { return deletedPrefix + s.String() }
func purgedName(s ident) string      { return purgedPrefix + s.String() }
func condemnedName(p ident) string   { return prunePrefix + p.String() + "/" + condemnedLeaf }
func doneName(p ident) string        { return prunePrefix + p.String() + "/" + doneLeaf }
func closedName(p ident) string      { return prunePrefix + p.String() + "/" + closedLeaf }
func changeName(id ident) string     { return changePrefix + id.String() }
func owedName(s ident, n int) string { return owedPrefix + s.String() + "/" + strconv.Itoa(n) }

func capableName(store ident) string { return capablePrefix + store.String() }

// damageName is where a list of damaged packs is: those of the highest number count.
func damageName(v uint64, id ident) string {
	return damagedPrefix + strconv.FormatUint(v, 10) + "/" + id.String()
}

// parseDamageName is the inverse of damageName.
func parseDamageName(name string) (v uint64, id ident, ok bool) {
	number, rest, _ := strings.Cut(strings.TrimPrefix(name, damagedPrefix), "/")
	v, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, ident{}, false
	}
	id, err = parseIdent(rest)
	return v, id, err == nil && v > 0 && damageName(v, id) == name
}

// owedSession returns the session whose owed shards an object lists.
func owedSession(name string) (ident, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0]+"/" != owedPrefix {
		return ident{}, false
	}
	s, err := parseIdent(parts[1])
	return s, err == nil
}

// tailNumber returns the number that a name has behind a prefix.
func tailNumber(name, prefix string) (uint64, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(rest, 10, 64)
	return v, err == nil && strconv.FormatUint(v, 10) == rest
}

// rootName is where a session's root record is. An outsider learns from it
// which backups are of one volume, and of one project, and no more.
func (k *keyring) rootName(project, volumeID string, s ident) (string, error) {
	p, err := k.token("project", project)
	if err != nil {
		return "", err
	}
	v, err := k.token("volume", project, volumeID)
	if err != nil {
		return "", err
	}
	return rootPrefix + p + "/" + v + "/" + s.String(), nil
}

// rootSession returns the session whose root record has the name.
func rootSession(name string) (ident, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0]+"/" != rootPrefix {
		return ident{}, false
	}
	id, err := parseIdent(parts[3])
	return id, err == nil
}

// sessionObject takes the name of an object of a session apart.
func sessionObject(name string) (s ident, leaf string, ok bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0]+"/" != sessionPrefix {
		return ident{}, "", false
	}
	s, err := parseIdent(parts[1])
	return s, parts[2], err == nil
}

// markSession returns the session of a name PREFIX<session>.
func markSession(name, prefix string) (ident, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return ident{}, false
	}
	id, err := parseIdent(rest)
	return id, err == nil
}

// packName is where the shards of a pack are, the same on every store. The
// folder in the middle keeps a folder's size within what every file system
// likes: it is the epoch and the number of the batch.
func packName(id chunk.PackID) string {
	s := id.String()
	return packPrefix + s[:32] + "/" + s[32:42] + "/" + s[42:]
}

// parsePackName is the inverse of packName.
func parsePackName(name string) (chunk.PackID, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0]+"/" != packPrefix {
		return chunk.PackID{}, false
	}
	id, err := chunk.ParsePackID(parts[1] + parts[2] + parts[3])
	return id, err == nil && packName(id) == name
}

// pruneName takes the name of an object of a prune apart.
func pruneName(name string) (id ident, leaf string, err error) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0]+"/" != prunePrefix {
		return ident{}, "", fmt.Errorf("%s is not an object of a prune", name)
	}
	id, err = parseIdent(parts[1])
	return id, parts[2], err
}

// listKind returns what an object of a prune is.
func listKind(name string) (kind, bool) {
	_, leaf, err := pruneName(name)
	switch {
	case err == nil && leaf == condemnedLeaf:
		return kindCondemned, true
	case err == nil && (leaf == doneLeaf || leaf == closedLeaf):
		return kindDone, true
	}
	return 0, false
}
