package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// The embedded default: folders in the state folder.
const (
	defaultData   = 4
	defaultParity = 2
)

func storeFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "store", Usage: "`folder` of a store; once for each store (STATE/stores/1 to 6 if none is given)"}
}

func defaultStores(state string) []string {
	var paths []string
	for i := range defaultData + defaultParity {
		paths = append(paths, filepath.Join(state, "stores", strconv.Itoa(i+1)))
	}
	return paths
}

// stores returns the stores that were named, or the embedded default when that
// was made.
func stores(named []string, state string) ([]string, error) {
	if len(named) > 0 {
		return named, nil
	}
	switch _, err := os.Stat(filepath.Join(state, "stores")); {
	case err == nil:
		return defaultStores(state), nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("look for stores: %w", err)
	}
	return nil, usagef("no store is named and %s is not there: give --store for each store, or make a repository with \"cairn repo init\"", filepath.Join(state, "stores"))
}

// openStores opens stores by name. They need not be reachable.
func openStores(names []string, open func(string, dirstore.Options) (*dirstore.Store, error)) ([]objstore.Store, error) {
	var all []objstore.Store
	for _, name := range names {
		path, err := storePath(name)
		if err != nil {
			return nil, errors.Join(err, closeStores(all))
		}
		s, err := open(path, dirstore.Options{})
		if err != nil {
			return nil, errors.Join(err, closeStores(all))
		}
		all = append(all, s)
	}
	return all, nil
}

func hasScheme(name string) bool { return strings.Contains(name, "://") }

// storePath understands a path and file://PATH. Other kinds of stores get
// their scheme here.
func storePath(name string) (string, error) {
	if path, ok := strings.CutPrefix(name, "file://"); ok {
		name = path
	} else if scheme, _, ok := strings.Cut(name, "://"); ok {
		return "", usagef("store %s: this version keeps stores in folders, it does not know %s://", name, scheme)
	}
	return absolute(name)
}

func closeStores(all []objstore.Store) error {
	var errs []error
	for _, s := range all {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// repositoryFlags name the repository straight, without an agent.
func repositoryFlags(more ...cli.Flag) []cli.Flag {
	return append(more, storeFlag(), passwordFlag(), stateFlag(), outputFlag())
}

// withRepository is a command on the stores themselves.
func withRepository(action func(*cli.Context, *repository.Repository) error) func(*cli.Context) error {
	return func(c *cli.Context) (err error) {
		if _, err = wantsJSON(c); err != nil {
			return err
		}
		names, err := stores(c.StringSlice("store"), c.String("state"))
		if err != nil {
			return err
		}
		pw, err := password(c.String("password-file"), c.String("state"))
		if err != nil {
			return err
		}
		r, err := openRepository(c.Context, names, repository.Options{Password: pw})
		if err != nil {
			return wrongPassword(err, c.String("password-file"), c.String("state"))
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return action(c, r)
	}
}

// openRepository opens a repository by the names of its stores.
func openRepository(ctx context.Context, names []string, o repository.Options) (*repository.Repository, error) {
	var err error
	if o.Stores, err = openStores(names, dirstore.Open); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	o.Agent = fmt.Sprintf("%s, process %d", host, os.Getpid())
	r, err := repository.Open(ctx, o)
	if err != nil {
		return nil, errors.Join(err, closeStores(o.Stores))
	}
	return r, nil
}
