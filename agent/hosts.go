package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Agents of several hosts may share the catalog of the default repository. Each works
// as its host: what it has in hand is marked so, and nobody else's to settle while
// its host is up, by the clock of the database. Two agents under one name would take
// each other's jobs for leftovers; so an agent beats before it settles anything, and
// ends when another one has its name.

// HostIDName is the file in the state folder that tells this agent from another one
// under the same name of a host.
const HostIDName = "host-id"

// hostID reads the ID of a state folder, and makes it where there is none.
func hostID(state string) (string, error) {
	name := filepath.Join(state, HostIDName)
	text, err := vfs.ReadFile(vfs.OS(), name, 1<<10)
	switch id := strings.TrimSpace(string(text)); {
	case errors.Is(err, fs.ErrNotExist):
		id = uuid.NewString()
		if err = vfs.WriteFile(vfs.OS(), name, []byte(id+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("make the ID of the state folder: %w", err)
		}
		return id, nil
	case err != nil:
		return "", fmt.Errorf("read the ID of the state folder: %w", err)
	case uuid.Validate(id) != nil:
		return "", refuse(CodeInvalid, "%s is damaged: remove it, and start the agent again a minute after it last ran", name)
	default:
		return id, nil
	}
}

// join makes the server one of those that share its catalog.
func (s *server) join(ctx context.Context) error {
	id, err := hostID(s.o.State)
	if err != nil {
		return err
	}
	s.cat, s.hostID = s.cat.For(s.hub.host), id
	return s.beat(ctx)
}

// beat tells the agents that share the catalog that this one is up, if any may.
func (s *server) beat(ctx context.Context) error {
	if !s.cat.Shared() {
		return nil
	}
	h := catalog.Host{Name: s.cat.Host(), ID: s.hostID, Version: s.o.Version}
	if a := s.o.API; a != nil {
		h.Address = orElse(a.Public, a.Listener.Addr().String())
	}
	return s.cat.BeatHost(ctx, h)
}

// keepBeating beats until ctx ends. The agent ends when another one has its name.
func (s *server) keepBeating(ctx context.Context) {
	tick := time.NewTicker(catalog.BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := s.beat(ctx)
		switch {
		case err == nil:
			// Another host may have ended them meanwhile, when this one could not beat.
			if jerr := s.jobs.tellRunning(ctx); jerr != nil && ctx.Err() == nil {
				s.log.LogAttrs(ctx, slog.LevelWarn, "progress of jobs not recorded", slog.Any("error", jerr))
			}
		case ctx.Err() != nil:
		case errors.Is(err, catalog.ErrHostTaken):
			s.hub.fail(err)
			return
		default:
			s.log.LogAttrs(ctx, slog.LevelWarn, "other hosts may take this one to be down", slog.Any("error", err))
		}
	}
}

// own says whether the agent of this host brought a backup into its state.
func (s *server) own(b Backup) bool {
	return !s.cat.Shared() || b.Host == s.cat.Host()
}

// settles returns what says whether a backup in a state that passes is this agent's to
// see to the end: its own, and those of hosts that are down.
func (s *server) settles(ctx context.Context) (func(Backup) bool, error) {
	if !s.cat.Shared() {
		return s.own, nil
	}
	hosts, err := s.cat.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	up := map[string]bool{}
	for _, h := range hosts {
		up[h.Name] = h.Up
	}
	return func(b Backup) bool { return s.own(b) || !up[b.Host] }, nil
}

// elsewhereError is a refusal that names a host, for the operator.
type elsewhereError struct {
	backup  string
	refusal *Error
}

// Error returns the sentence.
func (e *elsewhereError) Error() string { return e.refusal.Text }

// Unwrap returns the refusal.
func (e *elsewhereError) Unwrap() error { return e.refusal }

// unusedElsewhere refuses a backup that the agent of another host works on.
func (s *server) unusedElsewhere(ctx context.Context, b Backup) error {
	l, err := s.cat.JobsElsewhere(ctx, b.ID)
	if err != nil {
		return err
	}
	if len(l) > 0 {
		return &elsewhereError{b.ID, refuse(CodeBusy, "backup %s has a %s job (%s) at host %s: wait for it or cancel it", b.ID, l[0].Kind, l[0].ID, l[0].Host)}
	}
	if b.Status == catalog.Creating && !s.own(b) {
		return &elsewhereError{b.ID, refuse(CodeBusy, "backup %s was being made at host %s, which is down: it is settled within a minute or so", b.ID, b.Host)}
	}
	return nil
}

// cancelJob asks a job to end, at the host that runs it.
func (s *server) cancelJob(ctx context.Context, ref string) (Job, error) {
	j, err := s.jobs.find(ctx, ref)
	if err != nil {
		return j, err
	}
	if !s.cat.Shared() || j.State.Final() || j.Host == s.cat.Host() {
		return s.jobs.cancelJob(ctx, j.ID)
	}
	got, err := remoteCancelJob.at(ctx, s.hub.blockStorage(), j.Host, askJob{j.ID})
	if isUnavailable(err) {
		err = refuse(CodeUnavailable, "job %s is one of host %s, which does not answer: it is settled when that is back, or has been away for a minute", j.ID, j.Host)
	}
	if f, ok := errors.AsType[*cinderapi.Fault](err); ok {
		err = refuse(CodeConflict, "%s", f.Message)
	}
	return got, err
}

// restoredElsewhere says whether the agent of another host restores a backup.
func (s *server) restoredElsewhere(ctx context.Context, backup string) (bool, error) {
	l, err := s.cat.JobsElsewhere(ctx, backup)
	for _, j := range l {
		if j.Kind == catalog.RestoreJob {
			return true, nil
		}
	}
	return false, err
}

// Hosts returns the services that there are: those of this agent, as it finds them, and
// those of the agents that share its catalog, which are up as long as these are.
func (b *blockStorage) Hosts(ctx context.Context) ([]cinderapi.Host, error) {
	l := []catalog.Host{{Name: b.host, Up: true, Beat: time.Now().UTC()}}
	if b.cat.Shared() {
		var err error
		if l, err = b.cat.Hosts(ctx); err != nil {
			return nil, err
		}
	}
	_, unreachable := b.serve.Status(ctx)
	out := make([]cinderapi.Host, 0, 2*len(l))
	for _, h := range l {
		backup, volume := h.Up, h.Up
		if h.Name == b.host {
			backup, volume = b.closed() == nil, unreachable == nil
		}
		out = append(out,
			cinderapi.Host{Binary: "cinder-backup", Name: h.Name, Zone: b.Zone(), Up: backup, Disabled: h.Disabled, Updated: h.Beat},
			cinderapi.Host{Binary: "cinder-volume", Name: h.Name + "@" + backend, Zone: b.Zone(), Up: volume, Disabled: h.Disabled, Updated: h.Beat})
	}
	return out, nil
}

// serviceState is the body of a request to give a host work, or none.
type serviceState struct {
	Disabled string `json:"disabled_reason"` // why it shall get no new volumes; empty = it shall
}

// setService says whether a host gets new volumes.
func (s *server) setService(ctx context.Context, r request) (any, error) {
	var req serviceState
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if err := checkText("reason", req.Disabled); err != nil {
		return nil, err
	}
	if err := s.severalHosts(); err != nil {
		return nil, err
	}
	return nil, noHost(s.cat.DisableHost(ctx, r.ref, req.Disabled), r.ref)
}

// forgetHost forgets a host that is gone for good, and what it told of its volumes.
func (s *server) forgetHost(ctx context.Context, r request) (any, error) {
	if err := s.severalHosts(); err != nil {
		return nil, err
	}
	err := s.cat.ForgetHost(ctx, r.ref)
	if errors.Is(err, catalog.ErrHostUp) {
		return nil, refuse(CodeConflict, "host %s cannot be forgotten while its agent runs: stop it, and wait a minute", clip(r.ref))
	}
	return nil, noHost(err, r.ref)
}

func (s *server) severalHosts() error {
	if s.cat.Shared() {
		return nil
	}
	return refuse(CodeConflict, "this agent is the only host of its catalog: several share one in PostgreSQL (\"cairn agent --catalog postgres://…\")")
}

func noHost(err error, name string) error {
	if errors.Is(err, catalog.ErrNotFound) {
		return refuse(CodeNotFound, "there is no host %q: \"cairn service list\" shows them", clip(name))
	}
	return err
}
