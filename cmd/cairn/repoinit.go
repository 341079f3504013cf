package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// initRequest says what repository to make.
type initRequest struct {
	stores       []string // empty: the embedded default
	data, parity int      // 0 and 0: by the number of stores
	losses       *int
	passwordFile string // empty: the state folder's, made if it is not there
	state        string
}

// initResult is what was made.
type initResult struct {
	ID           string   `json:"id"`
	Data         int      `json:"data"`
	Parity       int      `json:"parity"`
	Losses       int      `json:"losses"`
	Stores       []string `json:"stores"`
	PasswordFile string   `json:"password_file"`
	PasswordMade bool     `json:"password_made"`
}

func repoInitCommand() *cli.Command {
	return leaf("init", "[STORE] ...", "make a repository: without --store six folders in the state folder, any four of which restore everything", repositoryFlags(
		&cli.IntFlag{Name: "data", Usage: "`number` of stores that suffice to restore everything (by default two thirds)"},
		&cli.IntFlag{Name: "parity", Usage: "`number` of stores that may be lost (by default one third)"},
		&cli.IntFlag{Name: "losses", Value: 1, Usage: "`number` of further losses that a backup must survive the moment it is made"},
	), func(c *cli.Context) error {
		if _, err := wantsJSON(c); err != nil {
			return err
		}
		req := initRequest{
			// "--store /mnt/*/cairn" is one flag and many words.
			stores: append(c.StringSlice("store"), c.Args().Slice()...),
			data:   c.Int("data"), parity: c.Int("parity"),
			passwordFile: c.String("password-file"), state: c.String("state"),
		}
		if c.IsSet("losses") {
			losses := c.Int("losses")
			req.losses = &losses
		}
		if c.Args().Len() > 0 && len(c.StringSlice("store")) == 0 {
			return usagef("%q: stores are named with --store", c.Args().First())
		}
		if c.IsSet("data") && req.data < 1 || c.IsSet("parity") && req.parity < 0 {
			return usagef("a repository has at least 1 data shard and 0 parity shards")
		}
		if err := req.geometry(c.IsSet("data"), c.IsSet("parity")); err != nil {
			return err
		}
		made, err := makeRepository(c.Context, req)
		if err != nil {
			return err
		}
		if made.PasswordFile, err = absolute(made.PasswordFile); err != nil {
			return err
		}
		return emit(c, made, func(t *table) {
			for _, line := range made.sentences() {
				t.row(line)
			}
		})
	})
}

// geometry fills in what was not given.
func (r *initRequest) geometry(data, parity bool) error {
	n := len(r.stores)
	switch {
	case n == 0 && !data && !parity:
		r.data, r.parity = defaultData, defaultParity
	case n == 0:
		return usagef("--data and --parity need the stores: give --store %d times", max(r.data+r.parity, 1))
	case data && parity:
	case data:
		r.parity = n - r.data
	case parity:
		r.data = n - r.parity
	default:
		r.parity = n / 3
		if n == 2 {
			r.parity = 1
		}
		r.data = n - r.parity
	}
	if n > 0 && (r.data < 1 || r.parity < 0) {
		return usagef("%d data and %d parity shards need more than the %d stores that --store gives: one store keeps one shard of each pack", max(r.data, 1), max(r.parity, 0), n)
	}
	if n > 0 && r.data+r.parity != n {
		return usagef("%d data and %d parity shards need %d stores, but --store is given %d times: one store keeps one shard of each pack", r.data, r.parity, r.data+r.parity, n)
	}
	return nil
}

// makeRepository makes a repository, and takes everything back when it fails.
func makeRepository(ctx context.Context, r initRequest) (made initResult, err error) {
	names := r.stores
	if len(names) == 0 {
		names = defaultStores(r.state)
	}
	var folders newFolders
	if err = folders.note(append(slices.Clip(names), r.state)); err != nil {
		return made, err
	}
	if len(r.stores) == 0 || r.passwordFile == "" {
		if err = os.MkdirAll(r.state, 0o700); err != nil {
			return made, errors.Join(fmt.Errorf("make the state folder: %w", err), folders.remove())
		}
	}
	var pw []byte
	defer func() {
		if err == nil {
			return
		}
		if made.PasswordMade {
			err = errors.Join(err, os.Remove(made.PasswordFile))
		}
		err = errors.Join(err, folders.remove())
		made = initResult{}
	}()
	all, err := openStores(names, true)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, closeStores(all)) }()
	if err = apart(names); err != nil {
		return made, err
	}
	if pw, made.PasswordFile, made.PasswordMade, err = initPassword(r); err != nil {
		return made, err
	}
	info, err := repository.Init(ctx, repository.InitOptions{
		Stores: all, Data: r.data, Parity: r.parity, Losses: r.losses, Password: pw,
	})
	if err != nil {
		return made, err
	}
	made.ID, made.Data, made.Parity, made.Losses, made.Stores = info.ID, info.Data, info.Parity, info.Losses, urls(all)
	return made, nil
}

// apart refuses stores of which one is or holds another, whatever links lead
// there: two shards would be lost at once.
func apart(names []string) error {
	var places []place
	for _, n := range names {
		p, err := placeOf(n)
		if err != nil {
			return err
		}
		places = append(places, p)
	}
	for i, a := range places {
		for j, b := range places {
			if i == j || (a.folder == "") != (b.folder == "") {
				continue
			}
			if a.folder == "" {
				if i < j && a.bucket.Overlaps(b.bucket) {
					return usagef("stores %s and %s are one place, or one lies in the other: give each a bucket or a prefix of its own", a, b)
				}
				continue
			}
			rel, err := filepath.Rel(realPath(a.folder), realPath(b.folder))
			switch {
			case err != nil || !filepath.IsLocal(rel):
			case rel == ".":
				return usagef("stores %s and %s are one folder: name another for one of them", a, b)
			default:
				return usagef("store %s lies in store %s: name another folder for one of them", b, a)
			}
		}
	}
	return nil
}

// realPath follows symbolic links where it can.
func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// initPassword reads the password that was named; the state folder's file is
// made if it is not there.
func initPassword(r initRequest) (pw []byte, file string, made bool, err error) {
	if r.passwordFile != "" {
		pw, err = readPassword(r.passwordFile)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: make one with \"(umask 077; head -c 24 /dev/urandom | base64 > %s)\", or leave --password-file out", err, r.passwordFile)
		}
		return pw, r.passwordFile, false, err
	}
	file = statePassword(r.state)
	if pw, err = readPassword(file); !errors.Is(err, fs.ErrNotExist) {
		return pw, file, false, err
	}
	pw, err = makePassword(file)
	return pw, file, err == nil, err
}

func urls(all []objstore.Store) []string {
	var l []string
	for _, s := range all {
		l = append(l, s.URL())
	}
	return l
}

// sentences tell a person what was made, and what to do about it.
func (r initResult) sentences() []string {
	n := len(r.Stores)
	lines := []string{fmt.Sprintf("made repository %s in %s", r.ID, strings.Join(r.Stores, ", "))}
	if r.Parity > 0 {
		lines = append(lines, fmt.Sprintf("any %d of these %d stores restore everything", r.Data, n))
	} else {
		lines = append(lines, fmt.Sprintf("all %d stores are needed to restore: nothing here survives the loss of one", n))
	}
	if r.PasswordMade {
		lines = append(lines, fmt.Sprintf("made password file %s: copy it to a safe place, without it no backup can be read", r.PasswordFile))
	}
	if n > 1 && oneDevice(r.Stores) {
		lines = append(lines, "all stores are on one disk, whose loss they do not survive: good for a trial; for the real thing give each store a disk of its own (cairn repo init --store ...)")
	}
	if n > 1 && oneServer(r.Stores) {
		lines = append(lines, "all stores are at one S3 service, whose loss they do not survive: that is as good as that service is")
	}
	return lines
}

// oneServer reports whether all stores are buckets at one address, which at
// Amazon says little.
func oneServer(names []string) bool {
	services := make(map[string]bool)
	for _, n := range names {
		p, err := placeOf(n)
		if err != nil || p.folder != "" || p.bucket.Endpoint == "" {
			return false
		}
		services[p.bucket.Endpoint] = true
	}
	return len(services) == 1
}

// newFolders remembers what was not there, to take it back.
type newFolders struct {
	paths []string                   // folders that were not there
	held  map[string]map[string]bool // what folders that were there held
}

func (f *newFolders) note(names []string) error {
	f.held = make(map[string]map[string]bool)
	for _, n := range names {
		p, err := placeOf(n)
		if err != nil {
			return err
		}
		path := p.folder
		if path == "" {
			continue // a bucket: nothing but objects is made there
		}
		if entries, err := os.ReadDir(path); err == nil {
			f.held[path] = make(map[string]bool)
			for _, e := range entries {
				f.held[path][e.Name()] = true
			}
		}
		for {
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				break
			}
			f.paths = append(f.paths, path)
			path = filepath.Dir(path)
		}
	}
	return nil
}

// remove removes folders as far as they are new and empty.
func (f *newFolders) remove() error {
	var errs []error
	drop := func(dir string) {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.EROFS) {
			errs = append(errs, err)
		}
	}
	inside := func(path string, held map[string]bool) {
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if e.IsDir() && !held[e.Name()] {
				drop(filepath.Join(path, e.Name()))
			}
		}
	}
	for path, held := range f.held {
		inside(path, held)
	}
	for _, path := range f.paths {
		inside(path, nil)
		drop(path)
	}
	return errors.Join(errs...)
}
