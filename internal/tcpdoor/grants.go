package tcpdoor

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Grants say which exports the client with a certificate may use: patterns of
// export names by the certificate's common name. In a pattern, * stands for any
// number of characters but @, ? for one of them, [a-d] for one of these. So
// "db-*" means volumes to read and write, "db-*@ro" the same only to read, and
// "db-*@*" those and all snapshots. A name without patterns gets nothing.
type Grants map[string][]string

// Check refuses grants that say nothing or cannot be understood.
func (g Grants) Check() error {
	if len(g) == 0 {
		return errors.New("nobody is named: give a line for each certificate, its common name and the exports that it may use, such as \"host-1: [vm1, 'db-*']\"")
	}
	for name, patterns := range g {
		if name == "" {
			return errors.New("exports are given to a certificate without a name: give its common name")
		}
		for _, p := range patterns {
			if p == "" {
				return fmt.Errorf("an export of certificate %q has no name: give one, or a pattern such as 'db-*'", name)
			}
			for part := range strings.SplitSeq(p, "@") {
				if _, err := path.Match(part, ""); err != nil {
					return fmt.Errorf("the pattern %q of certificate %q is malformed: close its bracket, or leave it out", p, name)
				}
			}
		}
	}
	return nil
}

// allow says whether the client may use the export.
func (g Grants) allow(client, export string) bool {
	for _, p := range g[client] {
		if match(p, export) {
			return true
		}
	}
	return false
}

// match compares what is before and what is behind the @, if there is one, so that
// no pattern for volumes stands for a snapshot.
func match(pattern, export string) bool {
	vol, label, deep := strings.Cut(pattern, "@")
	exportVol, exportLabel, exportDeep := strings.Cut(export, "@")
	return deep == exportDeep && matchPart(vol, exportVol) && matchPart(label, exportLabel)
}

func matchPart(pattern, part string) bool {
	ok, err := path.Match(pattern, part)
	return ok && err == nil && !strings.Contains(part, "/") // for which * does not stand
}
