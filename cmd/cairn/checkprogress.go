package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// checkProgress is what a check of the data has read so far, in a file that the next
// check goes on from when this one is interrupted: a line for each pack, appended as it
// is read, and one with the backups whose chunks in these packs were opened, of which
// the last counts. Other than a position it says that something need not be read again, so that
// each line has a checksum over itself and all before it; what comes behind a line that
// is wrong counts for nothing.
type checkProgress struct {
	f      vfs.File
	size   int64
	sum    uint32
	name   string
	began  time.Time
	done   map[string]bool // pack -> sound
	opened map[string]bool // sessions of the backups whose chunks were opened
	err    error           // why nothing more is remembered
}

// checkStale is how old a check may be that is gone on with: what was read long ago may
// be damaged by now.
const checkStale = 14 * 24 * time.Hour

const (
	progressHeader = "cairn check progress 2"
	maxProgress    = 1 << 30 // ten million packs
)

// progressFile depends on the share: a check of all that was interrupted is not over
// because one of a tenth has ended.
func progressFile(c *cli.Context, r *repository.Repository, percent int) string {
	return fmt.Sprintf("%s.%d", positionFile(c, r), percent)
}

// openProgress opens the file of a check, and goes on with what it says unless it is to
// be begun anew, is too old or makes no sense.
func openProgress(name string, anew bool, now time.Time) (*checkProgress, error) {
	if err := vfs.MkdirAll(vfs.OS(), filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	f, err := vfs.OS().OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &checkProgress{name: name, f: f}
	if err = p.goOn(anew, now); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (p *checkProgress) goOn(anew bool, now time.Time) error {
	if err := vfs.Lock(p.f); err != nil {
		return fmt.Errorf("another check of the same data uses %s: %w", p.name, err)
	}
	if err := p.load(); err != nil {
		return err
	}
	if age := now.Sub(p.began); anew || p.began.IsZero() || age < 0 || age > checkStale {
		return p.begin(now)
	}
	return nil
}

// load reads the lines that are right.
func (p *checkProgress) load() error {
	data, err := vfs.ReadFile(vfs.OS(), p.name, maxProgress)
	if err != nil {
		return err
	}
	p.done = make(map[string]bool)
	for {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole || !p.take(string(line)) {
			break
		}
		p.size += int64(len(line)) + 1
		data = rest
	}
	// What is behind the last good line is written over.
	return p.f.Truncate(p.size)
}

// take takes one line in, and says whether it is right.
func (p *checkProgress) take(line string) bool {
	text, sum, ok := cutLast(line, " ")
	next := chain(p.sum, text)
	if !ok || sum != fmt.Sprintf("%08x", next) {
		return false
	}
	head, value, ok := cutLast(text, " ")
	if !ok {
		return false
	}
	switch {
	case p.began.IsZero():
		seconds, err := strconv.ParseInt(value, 10, 64)
		if head != progressHeader || err != nil {
			return false
		}
		p.began = time.Unix(seconds, 0)
	case repository.IsPosition(head) && (value == "sound" || value == "damaged"):
		p.done[head] = value == "sound"
	case value == "opened":
		p.opened = make(map[string]bool)
		for session := range strings.SplitSeq(head, ",") {
			p.opened[session] = true
		}
	default:
		return false
	}
	p.sum = next
	return true
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// chain is the checksum of a line behind others.
func chain(before uint32, text string) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], before)
	return crc32.Update(crc32.ChecksumIEEE(b[:]), crc32.IEEETable, []byte(text))
}

func (p *checkProgress) begin(now time.Time) error {
	p.size, p.sum, p.began, p.done, p.opened = 0, 0, now, make(map[string]bool), nil
	if err := p.f.Truncate(0); err != nil {
		return err
	}
	return p.write(fmt.Sprintf("%s %d", progressHeader, now.Unix()))
}

func (p *checkProgress) write(text string) error {
	sum := chain(p.sum, text)
	line := fmt.Sprintf("%s %08x\n", text, sum)
	if _, err := p.f.WriteAt([]byte(line), p.size); err != nil {
		return fmt.Errorf("remember how far the check is: %w", err)
	}
	p.size += int64(len(line))
	p.sum = sum
	return nil
}

// read notes a pack that was read. That it cannot is no reason to end a check.
func (p *checkProgress) read(pack string, sound bool) error {
	if p.err != nil {
		return nil //nolint:nilerr // interrupted says it
	}
	word := "damaged"
	if sound {
		word = "sound"
	}
	p.err = p.write(pack + " " + word)
	return nil
}

// opens notes of which backups all is said that follows, and was before.
func (p *checkProgress) opens(sessions []string) error {
	if p.err != nil {
		return nil //nolint:nilerr // interrupted says it
	}
	p.err = p.write(cmp.Or(strings.Join(sessions, ","), "none") + " opened")
	return nil
}

// goesOn says in a sentence what is not read again; empty: the check begins anew.
func (p *checkProgress) goesOn() string {
	if p == nil || len(p.done) == 0 {
		return ""
	}
	damaged := 0
	for _, sound := range p.done {
		if !sound {
			damaged++
		}
	}
	text := fmt.Sprintf("going on with the check that began %s: %d packs were read before", p.began.Format(time.DateTime), len(p.done))
	if damaged > 0 {
		text += fmt.Sprintf(", of which %d were damaged and are read again", damaged)
	}
	return text + "; --from-start reads everything"
}

// finish ends the check: the next one begins anew.
func (p *checkProgress) finish() error {
	if p == nil {
		return nil
	}
	err := vfs.OS().Remove(p.name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, p.f.Close())
}

// leave ends the process's use and keeps the file.
func (p *checkProgress) leave() error {
	if p == nil {
		return nil
	}
	return p.f.Close()
}

// interrupted is the error of a check that did not come to its end.
func (p *checkProgress) interrupted(err error, w io.Writer) error {
	if p == nil {
		return err
	}
	text := "what was read is remembered: the same command goes on with the rest"
	if p.err != nil {
		text = "not all that was read is remembered: " + p.err.Error()
	}
	if _, werr := fmt.Fprintln(w, text); werr != nil {
		return errors.Join(err, werr)
	}
	return err
}
