package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// agentSettings are the flags of "cairn agent", and the keys of its file.
type agentSettings struct {
	State        string   `yaml:"state"`
	Socket       string   `yaml:"socket"`
	Control      string   `yaml:"control"`
	NBDDir       string   `yaml:"nbd-dir"`
	Stores       []string `yaml:"stores"`
	PasswordFile string   `yaml:"password-file"`
	Catalog      string   `yaml:"catalog"`
	Group        string   `yaml:"group"`
	Init         bool     `yaml:"init"`
	Jobs         int      `yaml:"jobs"`
	ReadLimit    string   `yaml:"read-limit"`
	Retain       string   `yaml:"retain"`
	Scrub        string   `yaml:"scrub"`
	ScrubRate    string   `yaml:"scrub-rate"`
	NoServe      bool     `yaml:"no-serve"`
	KeepPriority bool     `yaml:"keep-priority"`
	LogLevel     string   `yaml:"log-level"`
	LogFormat    string   `yaml:"log-format"`

	APIListen    string `yaml:"api-listen"`
	APICert      string `yaml:"api-tls-cert"`
	APIKey       string `yaml:"api-tls-key"`
	APIURL       string `yaml:"api-url"`
	Users        string `yaml:"users"`
	Keystone     string `yaml:"keystone"`
	KeystoneTime string `yaml:"keystone-cache"`
	AdminToken   string `yaml:"admin-token-file"`
	NoAuth       bool   `yaml:"api-noauth"`
	StrictChains bool   `yaml:"strict-chains"`
	Webhook      string `yaml:"webhook"`
	Host         string `yaml:"host"`

	TLS         tlsFiles `yaml:",inline"`
	NBDListen   string   `yaml:"nbd-listen"`
	NBDURL      string   `yaml:"nbd-url"`
	ServeListen string   `yaml:"serve-nbd-listen"`
	ServeURL    string   `yaml:"serve-nbd-url"`

	Repositories map[string]*repoSettings `yaml:"repositories"`

	readLimit int64 // bytes per second
	retain    time.Duration
	scrub     time.Duration
	scrubRate int64 // bytes per second
}

// agentSettingsOf joins file and flags: a flag that is given, or set by the
// environment, goes before the file, the file before a default.
func agentSettingsOf(c *cli.Context) (*agentSettings, error) {
	s := &agentSettings{}
	name := c.String("config")
	if name == "" {
		name = defaultConfig()
	}
	err := s.read(name)
	if err != nil && (c.IsSet("config") || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	text := func(p *string, flag string) {
		if c.IsSet(flag) || *p == "" {
			*p = c.String(flag)
		}
	}
	text(&s.State, "state")
	text(&s.Socket, "socket")
	text(&s.Control, "control")
	text(&s.NBDDir, "nbd-dir")
	text(&s.PasswordFile, "password-file")
	if err := s.takeCatalog(c); err != nil {
		return nil, err
	}
	text(&s.Group, "group")
	text(&s.ReadLimit, "read-limit")
	text(&s.Retain, "retain")
	text(&s.Scrub, "scrub")
	text(&s.ScrubRate, "scrub-rate")
	text(&s.APIListen, "api-listen")
	text(&s.APICert, "api-tls-cert")
	text(&s.APIKey, "api-tls-key")
	text(&s.APIURL, "api-url")
	text(&s.Users, "users")
	text(&s.Keystone, "keystone")
	text(&s.KeystoneTime, "keystone-cache")
	text(&s.AdminToken, "admin-token-file")
	text(&s.Webhook, "webhook")
	text(&s.Host, "host")
	text(&s.NBDListen, "nbd-listen")
	text(&s.NBDURL, "nbd-url")
	text(&s.ServeListen, "serve-nbd-listen")
	text(&s.ServeURL, "serve-nbd-url")
	for i, f := range s.TLS.all() {
		text(f, tlsFlags[i])
	}
	text(&s.LogLevel, "log-level")
	text(&s.LogFormat, "log-format")
	for p, flag := range map[*bool]string{&s.Init: "init", &s.NoServe: "no-serve", &s.KeepPriority: "keep-priority", &s.NoAuth: "api-noauth", &s.StrictChains: "strict-chains"} {
		if c.IsSet(flag) {
			*p = c.Bool(flag)
		}
	}
	if c.IsSet("store") {
		s.Stores = c.StringSlice("store")
	}
	if c.IsSet("jobs") {
		s.Jobs = c.Int("jobs")
	}
	for _, given := range c.StringSlice("repo") {
		if err := s.addRepository(given); err != nil {
			return nil, err
		}
	}
	return s, s.check()
}

func (s *agentSettings) check() error {
	err := s.checkCatalog()
	if err != nil {
		return err
	}
	if s.ReadLimit != "" {
		if s.readLimit, err = parseSize(s.ReadLimit); err != nil {
			return fmt.Errorf("read-limit: %w", err)
		}
	}
	if s.Retain != "" {
		if s.retain, err = parseTime(s.Retain); err != nil {
			return fmt.Errorf("retain: %w", err)
		}
	}
	if s.scrub, err = parseTime(s.Scrub); err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	if s.scrub > 0 && s.scrub < time.Hour {
		return usagef("scrub: once in %s is too often: take an hour or more, or 0 for never", s.Scrub)
	}
	if s.scrubRate, err = parseSize(s.ScrubRate); err != nil {
		return fmt.Errorf("scrub-rate: %w", err)
	}
	for name, x := range s.Repositories {
		if err = x.check(name, s.retain); err != nil {
			return err
		}
	}
	if s.Webhook != "" {
		if err = agent.CheckWebhook(s.Webhook); err != nil {
			return usagef("webhook: %v", err)
		}
	}
	if s.Jobs < 0 {
		return usagef("jobs: %d jobs cannot run at once", s.Jobs)
	}
	// Absolute, so that what is logged, and handed to the data plane, holds anywhere.
	for _, p := range append(s.TLS.all(), &s.State, &s.Socket, &s.Control, &s.NBDDir) {
		if *p, err = absolute(*p); err != nil {
			return err
		}
	}
	return nil
}

// read reads a settings file. Paths are relative to its folder.
func (s *agentSettings) read(name string) error {
	if err := readYAML(name, s); err != nil {
		return err
	}
	for _, p := range append(s.TLS.all(), &s.State, &s.Socket, &s.Control, &s.NBDDir, &s.PasswordFile, &s.APICert, &s.APIKey, &s.Users, &s.AdminToken) {
		*p = beside(name, *p)
	}
	if file, ok := strings.CutPrefix(s.Catalog, sqliteScheme); ok && file != "" {
		s.Catalog = sqliteScheme + beside(name, file)
	}
	for repo, x := range s.Repositories {
		if x == nil {
			return usagef("settings file %s: repository %s says nothing: give its stores and password-file", name, repo)
		}
		if err := x.beside(name); err != nil {
			return err
		}
	}
	return storesBeside(name, s.Stores)
}

// readSmall reads a file that people write, of at most 1 MiB. A pipe would be waited for, or
// read as empty.
func readSmall(name string) ([]byte, error) {
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		return nil, usagef("%s is no regular file: name one", name)
	}
	return vfs.ReadFile(vfs.OS(), name, 1<<20)
}

// readYAML reads a settings file into v. Keys that v does not have are refused: a
// typing error shall not be a default.
func readYAML(name string, v any) error {
	b, err := readSmall(name)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return usagef("settings file %s is damaged: it holds bytes that are zero, as a power failure leaves them", name)
	}
	if err := yaml.UnmarshalWithOptions(b, v, yaml.Strict()); err != nil {
		return usagef("settings file %s, %s", name, yamlProblem(err))
	}
	return nil
}

// storesBeside makes the stores of a settings file independent of the working
// directory.
func storesBeside(name string, stores []string) error {
	for i, st := range stores {
		p, err := placeOf(beside(name, st))
		if err != nil {
			return fmt.Errorf("settings file %s: %w", name, err)
		}
		if p.folder != "" {
			stores[i] = p.folder
		}
	}
	return nil
}

// yamlProblem says in one line where a settings file is wrong, and how.
func yamlProblem(err error) string {
	if e, ok := errors.AsType[*yaml.TypeError](err); ok && e.Token != nil {
		wants := map[reflect.Kind]string{reflect.Int: "a number", reflect.Bool: "true or false", reflect.String: "text"}[e.DstType.Kind()]
		return fmt.Sprintf("line %d: %q stands where %s is expected", e.Token.Position.Line, e.Token.Value, cmp.Or(wants, "something else"))
	}
	text := yaml.FormatError(err, false, false)
	if place, what, ok := strings.Cut(strings.TrimPrefix(text, "["), "] "); ok {
		line, _, _ := strings.Cut(place, ":")
		return fmt.Sprintf("line %s: %s", line, what)
	}
	return text
}

// beside makes a path of a settings file independent of the working directory.
func beside(file, path string) string {
	if path == "" || filepath.IsAbs(path) || hasScheme(path) {
		return path
	}
	abs, err := filepath.Abs(filepath.Join(filepath.Dir(file), path))
	if err != nil {
		return path
	}
	return abs
}
