package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// share is the value of --read-data: a percentage, or none and all is meant.
type share int

// Set takes what is behind "=", or "true" when there is nothing.
func (s *share) Set(text string) error {
	if text == "true" {
		*s = 100
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(text, "%"))
	if err != nil || n < 1 || n > 100 {
		return errors.New("a percentage from 1 to 100, or nothing for all")
	}
	*s = share(n)
	return nil
}

// String returns the percentage, as Set takes it.
func (s *share) String() string {
	if s == nil || *s == 0 {
		return ""
	}
	return strconv.Itoa(int(*s))
}

// IsBoolFlag lets the flag stand without a value.
func (s *share) IsBoolFlag() bool { return true }

func readDataFlag() cli.Flag {
	return &cli.GenericFlag{
		Name: "read-data", Value: new(share),
		Usage: "read, decrypt and verify every byte, not only what leads there; --read-data=`PERCENT` reads that share, the next check the next",
	}
}

func readData(c *cli.Context) int {
	s, _ := c.Generic("read-data").(*share)
	if s == nil {
		return 0
	}
	return int(*s)
}

// positionFile is where a check that reads a share leaves how far it came. It is
// no more than a hint, so that it bears no checksum: a wrong one makes the round
// begin elsewhere, and it still comes to everything.
func positionFile(c *cli.Context, r *repository.Repository) string {
	return filepath.Join(c.String("state"), "check", r.Info().ID)
}

const positionHeader = "cairn check position 1\n"

// readPosition returns how far the checks before this one came; empty = the
// beginning, also when the file makes no sense.
func readPosition(name string) (string, error) {
	const limit = 4096
	data, err := vfs.ReadFile(vfs.OS(), name, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, vfs.ErrTooLarge):
		return "", nil
	case err != nil:
		return "", err
	}
	text, ok := strings.CutPrefix(string(data), positionHeader)
	position, whole := strings.CutSuffix(text, "\n")
	if !ok || !whole || !repository.IsPosition(position) {
		return "", nil
	}
	return position, nil
}

func writePosition(name, position string) error {
	if err := vfs.MkdirAll(vfs.OS(), filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS(), name, []byte(positionHeader+position+"\n"), 0o600)
}
