package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// maxPassword bounds what is read of a password file.
const maxPassword = 4096

func passwordFlag() cli.Flag {
	return &cli.StringFlag{Name: "password-file", EnvVars: []string{"CAIRN_PASSWORD_FILE"}, Usage: "`file` with the repository's password; STATE/password if it is there"}
}

func statePassword(state string) string { return filepath.Join(state, "password") }

// password finds the repository's password: in the file that was named, in the
// state folder's, or by asking on a terminal.
func password(named, state string) ([]byte, error) {
	if named != "" {
		return readPassword(named)
	}
	p, err := readPassword(statePassword(state))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		return askPassword(fd)
	}
	return nil, usagef("the repository's password is needed: give --password-file FILE or set CAIRN_PASSWORD_FILE (%s is not there)", statePassword(state))
}

// wrongPassword says where a wrong password came from.
func wrongPassword(err error, named, state string) error {
	if !errors.Is(err, repository.ErrPassword) {
		return err
	}
	if named == "" {
		named = statePassword(state)
		if _, serr := os.Stat(named); serr != nil {
			return err // it was typed
		}
	}
	return fmt.Errorf("%w in %s: name another with --password-file", err, named)
}

func askPassword(fd int) ([]byte, error) {
	fmt.Fprint(os.Stderr, "Password of the repository: ")
	p, err := term.ReadPassword(fd)
	fmt.Fprintln(os.Stderr)
	if err != nil {
		return nil, fmt.Errorf("read the password: %w", err)
	}
	if len(p) == 0 {
		return nil, usagef("the password is empty")
	}
	return p, nil
}

// readPassword reads a password file. One that others can read is refused: what it
// opens would be theirs. A line break at its end does not count.
func readPassword(name string) (p []byte, err error) {
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, noPasswordError(name)
	case err != nil:
		return nil, fmt.Errorf("password file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	switch mode := fi.Mode(); {
	case mode.IsDir():
		return nil, fmt.Errorf("password file %s is a folder", name)
	case mode.IsRegular() && mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("password file %s can be read by others (its mode is %04o): protect it with \"chmod 600 %s\"", name, mode.Perm(), name)
	}
	if p, err = io.ReadAll(io.LimitReader(f, maxPassword+1)); err != nil {
		return nil, fmt.Errorf("password file %s: %w", name, err)
	}
	p = bytes.TrimRight(p, "\r\n")
	switch {
	case len(p) == 0:
		return nil, fmt.Errorf("password file %s is empty: write the password into it, or name another file", name)
	case len(p) > maxPassword:
		return nil, fmt.Errorf("password file %s is longer than %d bytes: is it the right file?", name, maxPassword)
	}
	return p, nil
}

// noPasswordError is the error for a password file of this name that is not there:
// fs.ErrNotExist.
type noPasswordError string

// Error returns the sentence.
func (n noPasswordError) Error() string {
	return fmt.Sprintf("password file %s is not there", string(n))
}

// Is makes it fs.ErrNotExist.
func (noPasswordError) Is(target error) bool { return target == fs.ErrNotExist }

// makePassword writes a new random password to a file that is not there yet.
func makePassword(name string) ([]byte, error) {
	raw := make([]byte, 24)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("make a password: %w", err)
	}
	p := []byte(base64.RawURLEncoding.EncodeToString(raw))
	fsys := vfs.OS()
	if err := vfs.MkdirAll(fsys, filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the password file: %w", err)
	}
	if _, err := os.Lstat(name); err == nil {
		return nil, fmt.Errorf("password file %s: %w", name, fs.ErrExist)
	}
	if err := vfs.WriteFile(fsys, name, append(p, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("write the password file: %w", err)
	}
	return p, nil
}
