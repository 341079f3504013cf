package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/repository"
)

// repoSettings are one repository of the agent beside its own: a part of its
// settings file, or a file that --repo names.
type repoSettings struct {
	Stores       []string `yaml:"stores"`
	PasswordFile string   `yaml:"password-file"`
	Retain       string   `yaml:"retain"` // the agent's own if it is not given

	retain time.Duration
}

// addRepository takes NAME=FILE. A name that the settings file has as well is
// this one.
func (s *agentSettings) addRepository(given string) error {
	name, file, ok := strings.Cut(given, "=")
	if !ok || name == "" || file == "" {
		return usagef("--repo %s: give it as NAME=FILE, with the stores and the password-file of the repository in FILE", given)
	}
	x := &repoSettings{}
	if err := readYAML(file, x); err != nil {
		return fmt.Errorf("--repo %s: %w", given, err)
	}
	if err := x.beside(file); err != nil {
		return fmt.Errorf("--repo %s: %w", given, err)
	}
	if s.Repositories == nil {
		s.Repositories = map[string]*repoSettings{}
	}
	s.Repositories[name] = x
	return nil
}

// beside makes the paths of a settings file independent of the working directory.
func (x *repoSettings) beside(file string) error {
	x.PasswordFile = beside(file, x.PasswordFile)
	return storesBeside(file, x.Stores)
}

func (x *repoSettings) check(name string, retain time.Duration) error {
	if err := agent.CheckRepository(name); err != nil {
		return err
	}
	switch {
	case len(x.Stores) == 0:
		return usagef("repository %s has no stores: name them with \"stores:\"", name)
	case x.PasswordFile == "":
		return usagef("repository %s has no password: name its file with \"password-file:\"", name)
	case x.Retain == "":
		x.retain = retain
		return nil
	}
	var err error
	if x.retain, err = parseTime(x.Retain); err != nil {
		return fmt.Errorf("repository %s: retain: %w", name, err)
	}
	return nil
}

// open opens it for an agent. The folder of its dedup index is its own: the stores may
// turn out to be those of another, whose index it would hold while that is opened.
func (x *repoSettings) open(ctx context.Context, cache string, log *slog.Logger) (*repository.Repository, error) {
	pw, err := readPassword(x.PasswordFile)
	if err != nil {
		return nil, err
	}
	r, err := openRepository(ctx, x.Stores, repository.Options{Password: pw, CacheDir: cache, Logger: log})
	if errors.Is(err, repository.ErrPassword) {
		err = fmt.Errorf("%w in %s: name another as its password-file", err, x.PasswordFile)
	}
	return r, err
}
