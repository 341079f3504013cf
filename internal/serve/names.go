package serve

import (
	"regexp"
	"strings"

	"github.com/google/uuid"
)

const (
	// maxSocketPath is the longest path a unix socket can have: 108 bytes
	// with the final zero.
	maxSocketPath = 107

	// readOnlyDoor follows a volume's name in the name of its read-only
	// export.
	readOnlyDoor = "@ro"

	socketSuffix = ".sock"

	// snapshotPosition begins the checkpoint names that denote snapshots.
	snapshotPosition = "snapshot:"
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checkName refuses what cannot be the name of a volume, snapshot or
// checkpoint. Names become file names and parts of URIs.
func checkName(what, name string) error {
	if !namePattern.MatchString(name) {
		return refuse(CodeInvalid, "%s name %q is not usable: a name has 1 to 63 of A-Z a-z 0-9 . _ - and begins with a letter or digit", what, clip(name))
	}
	return nil
}

// checkFreeName is checkName for names that share a space with IDs.
func checkFreeName(what, name string) error {
	if err := checkName(what, name); err != nil {
		return err
	}
	if _, ok := parseID(name); ok {
		return refuse(CodeInvalid, "%s name %q looks like an ID: choose another", what, name)
	}
	return nil
}

// parseID recognizes an ID in its canonical form only.
func parseID(s string) (uuid.UUID, bool) {
	if len(s) != 36 {
		return uuid.Nil, false
	}
	id, err := uuid.Parse(s)
	return id, err == nil
}

// clip shortens text of a peer for a sentence.
func clip(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
