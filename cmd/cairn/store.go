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
	"github.com/cairnbackup/cairn/internal/objstore/limit"
	"github.com/cairnbackup/cairn/internal/objstore/retry"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/repository"
)

// The embedded default: folders in the state folder.
const (
	defaultData   = 4
	defaultParity = 2
)

func storeFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "store", Usage: "`folder` of a store, or 's3://BUCKET/PREFIX?endpoint=https://HOST:PORT'; once for each store (STATE/stores/1 to 6 if none is given)"}
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

// openStores opens stores by name. They need not be reachable; create makes
// folders that are not there.
func openStores(names []string, create bool) ([]objstore.Store, error) {
	var all []objstore.Store
	for _, name := range names {
		p, err := placeOf(name)
		if err != nil {
			return nil, errors.Join(err, closeStores(all))
		}
		s, err := p.open(create)
		if err != nil {
			return nil, errors.Join(err, closeStores(all))
		}
		all = append(all, s)
	}
	return all, nil
}

func hasScheme(name string) bool { return strings.Contains(name, "://") }

// place is where a store is: a folder or a bucket.
type place struct {
	folder string // absolute; empty = a bucket
	bucket s3store.Config
	limits limit.Options
}

// placeOf understands a path, file://PATH and s3://BUCKET. Other kinds of stores
// get their scheme here.
func placeOf(name string) (place, error) {
	scheme, path, ok := strings.Cut(name, "://")
	switch {
	case !ok:
		path = name
	case scheme == "s3":
		return bucketOf(name)
	case scheme != "file":
		return place{}, usagef("store %s: this version keeps stores in folders and in S3 buckets, it does not know %s://", name, scheme)
	}
	folder, err := absolute(path)
	return place{folder: folder}, err
}

// bucketOf takes an s3:// URL apart. It may hold a secret by mistake, so that
// no sentence repeats it.
func bucketOf(name string) (place, error) {
	c, rest, err := s3store.Parse(name)
	if err != nil {
		return place{}, usagef("an s3:// store cannot be used: %v", err)
	}
	p := place{bucket: c}
	for parameter := range rest {
		value := rest.Get(parameter)
		switch parameter {
		case "bandwidth":
			p.limits.Bandwidth, err = parseSize(value)
			if err == nil && p.limits.Bandwidth < limit.MinBandwidth {
				err = usagef("less than 64KiB in a second is too little for backups")
			}
		case "requests":
			p.limits.Requests, err = strconv.ParseFloat(value, 64)
			if err != nil || p.limits.Requests < 1 || p.limits.Requests > 1e6 {
				err = usagef("%q is no number of requests in a second: take 1 or more", value)
			}
		default:
			err = usagef("it is unknown: take endpoint, region, style, lock, versions, profile, ca, bandwidth or requests")
		}
		if err != nil {
			return place{}, usagef("store %s: parameter %s: %v", c, parameter, err)
		}
	}
	return p, nil
}

func (p place) String() string {
	if p.folder != "" {
		return p.folder
	}
	return p.bucket.String()
}

// open is the one place where stores are opened and decorated.
func (p place) open(create bool) (objstore.Store, error) {
	switch {
	case p.folder != "" && create:
		return dirstore.Create(p.folder, dirstore.Options{})
	case p.folder != "":
		return dirstore.Open(p.folder, dirstore.Options{})
	}
	var s objstore.Store
	s, err := s3store.Open(p.bucket)
	if err != nil {
		return nil, err
	}
	if p.limits != (limit.Options{}) {
		s = limit.New(s, p.limits) // below retry: attempts count
	}
	return retry.New(s, retry.Options{}), nil
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
		o := repository.Options{}
		if sheet := c.String("sheet"); sheet != "" {
			o.Master, err = readSheet(sheet)
		} else {
			o.Password, err = password(c.String("password-file"), c.String("state"))
		}
		if err != nil {
			return err
		}
		r, err := openRepository(c.Context, names, o)
		switch {
		case err != nil && o.Master != nil:
			return err
		case err != nil:
			return wrongPassword(err, c.String("password-file"), c.String("state"))
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return action(c, r)
	}
}

// openRepository opens a repository by the names of its stores.
func openRepository(ctx context.Context, names []string, o repository.Options) (*repository.Repository, error) {
	var err error
	if o.Stores, err = openStores(names, false); err != nil {
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
