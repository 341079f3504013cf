package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/identity"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// api opens the address of the Block Storage API and says who is let in; nil if it is
// not to be served.
func (s *agentSettings) api(ctx context.Context, log *slog.Logger) (a *agent.API, err error) {
	if s.KeystoneTime != "" && s.Keystone == "" {
		return nil, usagef("keystone-cache is for the answers of a Keystone: name one with --keystone")
	}
	if s.APIListen == "" {
		if s.Keystone != "" || s.NoAuth || s.AdminToken != "" || s.APICert != "" || s.APIURL != "" {
			return nil, usagef("there is no address for the Block Storage API that the settings speak of: give one with --api-listen HOST:PORT")
		}
		return nil, nil
	}
	conf, err := s.apiTLS(log)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.APIListen)
	if err != nil {
		return nil, usagef("the Block Storage API cannot be served on %s: %v", s.APIListen, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	a = &agent.API{Listener: l, Public: s.APIURL, StrictChains: s.StrictChains}
	if conf != nil {
		a.Listener = tls.NewListener(l, conf)
	} else if addr, ok := l.Addr().(*net.TCPAddr); ok && !addr.IP.IsLoopback() {
		log.LogAttrs(ctx, slog.LevelWarn, "the Block Storage API sends passwords and tokens without encryption: give --api-tls-cert and --api-tls-key", slog.String("address", s.APIListen))
	}
	return a, s.authenticate(a, log)
}

// authenticate fills in who is let in.
func (s *agentSettings) authenticate(a *agent.API, log *slog.Logger) error {
	var chain identity.Chain
	users, err := usersFile(s.Users, s.State)
	if err != nil {
		return err
	}
	_, err = os.Stat(users)
	switch {
	case err == nil:
		svc, nerr := identity.New(identity.Options{File: users, PublicURL: s.APIURL, Logger: log})
		if nerr != nil {
			return nerr
		}
		basic, berr := svc.Basic()
		if berr != nil {
			return berr
		}
		chain = append(chain, svc, basic)
		a.Identity = svc
		a.Project = func(_ *http.Request, _ agent.Caller, name string) (string, error) { return svc.ProjectID(name), nil }
	case !errors.Is(err, fs.ErrNotExist) || s.Users != "":
		return fmt.Errorf("users file: %w", err)
	}
	// Before Keystone, which is not to see it.
	if s.AdminToken != "" {
		t, terr := identity.NewAdminToken(vfs.OS(), s.AdminToken, identity.Project{})
		if terr != nil {
			return terr
		}
		chain = append(chain, t)
	}
	if s.Keystone != "" {
		k, kerr := s.keystone()
		if kerr != nil {
			return kerr
		}
		chain = append(chain, k)
		a.Keystone = s.Keystone
		a.Project = withKeystone(a.Project, k)
		if a.Identity == nil {
			a.AuthURL = s.Keystone
		}
	}
	if s.NoAuth {
		n, nerr := identity.NewNoAuth(a.Listener.Addr())
		if nerr != nil {
			return usagef("api-noauth: %v", nerr)
		}
		chain = append(chain, n)
	}
	if len(chain) == 0 {
		return usagef("nobody could use the Block Storage API: make a project and a user first (\"cairn project create\", \"cairn user create\"), or name a Keystone with --keystone")
	}
	a.Authenticate = chain.Authenticate
	return nil
}

// projectLookup is the type of [agent.API.Project].
type projectLookup = func(r *http.Request, by agent.Caller, name string) (string, error)

// withKeystone looks for projects first where others do, then in Keystone, for callers
// who are known there.
func withKeystone(first projectLookup, k *identity.Keystone) projectLookup {
	return func(r *http.Request, by agent.Caller, name string) (string, error) {
		if first != nil {
			if id, err := first(r, by, name); id != "" || err != nil {
				return id, err
			}
		}
		if !by.Keystone {
			return "", nil
		}
		return k.ProjectID(r, name)
	}
}

// keystone is what asks the Keystone that is named.
func (s *agentSettings) keystone() (*identity.Keystone, error) {
	var o identity.KeystoneOptions
	if s.KeystoneTime != "" {
		keep, err := parseTime(s.KeystoneTime)
		if err != nil {
			return nil, fmt.Errorf("keystone-cache: %w", err)
		}
		o.Remember = &keep
	}
	k, err := identity.NewKeystone(s.Keystone, o)
	if err != nil {
		return nil, usagef("keystone: %v", err)
	}
	return k, nil
}

// apiTLS reads the certificate of the API, and again when it is replaced; nil if none
// is named.
func (s *agentSettings) apiTLS(log *slog.Logger) (*tls.Config, error) {
	if s.APICert == "" && s.APIKey == "" {
		return nil, nil
	}
	if s.APICert == "" || s.APIKey == "" {
		return nil, usagef("a certificate needs its key, and a key its certificate: give both --api-tls-cert and --api-tls-key")
	}
	pair, err := newKeyPair("certificate of the API", s.APICert, s.APIKey, rereadEvery, log)
	if err != nil {
		return nil, usagef("the certificate of the API cannot be used: %v", err)
	}
	return &tls.Config{GetCertificate: pair.forHandshake, MinVersion: tls.VersionTLS12}, nil
}
