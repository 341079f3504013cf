package repository

import (
	"errors"
	"fmt"
	"strings"
)

// A rotation of the key may stop the password that a process was started with. What
// was written before can be read on, but for what a prune has moved since: where to
// is sealed under the new key. A check says that it cannot judge that, which is no
// damage, and publishes nothing.

// errSealed says that the password does not open where a pack's chunks went.
var errSealed = fmt.Errorf("where it went is sealed under another key: %w", errEpoch)

// unjudged reports whether something was not read only for want of its master key.
func unjudged(err error) bool { return errors.Is(err, ErrPassword) || errors.Is(err, errEpoch) }

// sealedFinds are what a check found and cannot open.
type sealedFinds struct {
	roots   map[string]bool // names of root records
	backups int             // of these, those that were not deleted
	packs   int             // that were compacted
	err     error           // why, of one of them
}

func (c *checker) sealedRoot(name string, deleted bool, err error) error {
	if c.sealed.roots == nil {
		c.sealed.roots = make(map[string]bool)
	}
	c.sealed.roots[name] = true
	if !deleted || c.trash {
		c.sealed.backups++
		c.sealed.err = err
	}
	return nil
}

// sealedMove notes a forwarding that cannot be opened.
func (c *checker) sealedMove(name string, err error) {
	old, _, _ := parseForwardName(name)
	if p := c.packs[old]; !p.sealed {
		p.sealed = true
		c.sealed.packs++
	}
	c.sealed.err = err
}

// tellSealed puts into the report what could not be judged.
func (c *checker) tellSealed() {
	if c.sealed.err == nil {
		return
	}
	var what []string
	if n := c.sealed.backups; n > 0 {
		what = append(what, fmt.Sprintf("%d backups that were made", n))
	}
	if n := c.sealed.packs; n > 0 {
		what = append(what, fmt.Sprintf("%d packs that were compacted", n))
	}
	c.report.Unjudged = fmt.Sprintf("%s the key was rotated cannot be judged with this password: %s", strings.Join(what, " and ")+" since", sentence(c.sealed.err))
}

// cannot notes why some of a backup cannot be read; text may be empty.
func (b *BackupReport) cannot(err error, text string) {
	b.Restorable = false
	if unjudged(err) {
		text = "some of it was compacted since the key was rotated, and cannot be judged with this password"
	} else {
		b.broken = true
	}
	b.Unjudged = !b.broken
	if text != "" {
		addProblem(&b.Problems, text)
	}
}
