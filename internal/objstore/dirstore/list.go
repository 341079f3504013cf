package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// List implements objstore.Store. It reads one folder at a time, so that its
// memory is that of the largest.
func (s *Store) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if err := objstore.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if err := s.present(); err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	// Everything below the prefix is in the folder that its last slash names.
	dir := ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir = prefix[:i]
	}
	l := lister{s: s, prefix: prefix, fn: fn}
	if err := l.folder(ctx, dir); err != nil {
		if l.own {
			return err // of fn, as it is
		}
		return fmt.Errorf("list %q in %s: %w", prefix, s.dir, err)
	}
	// A store that went away meanwhile looks like one with nothing left.
	if err := s.present(); err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	return nil
}

type lister struct {
	s      *Store
	prefix string
	fn     func(objstore.Info) error
	own    bool // the error that stopped the walk is fn's
}

func (l *lister) folder(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := l.s.fsys.ReadDir(filepath.Join(l.s.dir, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if dir != "" {
			name = dir + "/" + name
		}
		if objstore.CheckName(name) != nil {
			continue // TMP, lost+found, a file manager's
		}
		if e.IsDir() {
			if below := name + "/"; strings.HasPrefix(below, l.prefix) || strings.HasPrefix(l.prefix, below) {
				if err := l.folder(ctx, name); err != nil {
					return err
				}
			}
			continue
		}
		if err := l.file(e, name); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) file(e fs.DirEntry, name string) error {
	if !strings.HasPrefix(name, l.prefix) {
		return nil
	}
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted since
	}
	if err != nil {
		return err
	}
	if err := l.fn(objstore.Info{Name: name, Size: fi.Size()}); err != nil {
		l.own = true
		return err
	}
	return nil
}
