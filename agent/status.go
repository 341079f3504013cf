package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// briefPatience is how long a status waits for the stores of repositories that were
// not asked for, and for the catalog. It is a variable for tests.
var briefPatience = 5 * time.Second

func (s *server) status(ctx context.Context, _ request) (any, error) {
	st := Status{Version: s.o.Version, PID: os.Getpid(), Started: s.started, State: s.o.State, NBDListen: s.o.TCP.Listen()}
	if s.o.API != nil {
		st.Keystone = s.o.API.Keystone
	}
	if s.o.Scrub.Every > 0 {
		brief, cancel := context.WithTimeout(ctx, briefPatience)
		scrub, err := s.scrubStatus(brief)
		cancel()
		if err != nil {
			scrub.OK, scrub.Problem = false, err.Error()
		}
		st.Scrub = &scrub
	}
	if d, err := s.serve.Status(ctx); err != nil {
		st.ServeError = err.Error()
	} else {
		st.Serve = &d
	}
	own, others, err := s.repositories(ctx)
	if err != nil {
		return nil, err
	}
	st.Repository, st.Others = own.Repository, others
	st.Backups, st.Exports, st.Undecided, st.CatalogError = own.Backups, own.Exports, own.Undecided, own.CatalogError
	st.Queued, st.Running = s.jobs.counts()
	return st, nil
}

// repositories describes this server's repository and those of the others. Those
// keep nobody waiting: their stores have briefPatience, and what is wrong with one of
// them is told of it alone.
func (s *server) repositories(ctx context.Context) (own NamedRepository, others []NamedRepository, err error) {
	brief, cancel := context.WithTimeout(ctx, briefPatience)
	defer cancel()
	servers := s.all()
	all := make([]NamedRepository, len(servers))
	var wg sync.WaitGroup
	for i, o := range servers {
		wg.Go(func() {
			if o == s {
				all[i], err = o.describe(ctx)
				return
			}
			var oerr error
			if all[i], oerr = o.describe(brief); oerr != nil {
				all[i].Repository = RepositoryStatus{Error: oerr.Error()}
			}
			o.explainSilence(brief, all[i].Repository.Stores)
		})
	}
	wg.Wait()
	for i, o := range servers {
		if o == s {
			own = all[i]
		} else {
			others = append(others, all[i])
		}
	}
	for _, x := range s.hub.broken {
		others = append(others, NamedRepository{Name: x.name, Repository: RepositoryStatus{Error: x.err.Text}})
	}
	return own, others, err
}

// explainSilence adds to the errors of stores that they were asked no longer, when ctx
// has ended.
func (s *server) explainSilence(ctx context.Context, stores []StoreStatus) {
	if ctx.Err() == nil {
		return
	}
	for i := range stores {
		if x := &stores[i]; x.Error != "" {
			x.Error = fmt.Sprintf("%s (in %s: \"cairn status --repo %s\" waits longer)", x.Error, briefPatience, s.name)
		}
	}
}

// describe says how the repository does, also while its catalog is out of reach: that is
// when somebody asks.
func (s *server) describe(ctx context.Context) (NamedRepository, error) {
	n := NamedRepository{Name: s.name, Exports: len(s.exports.list())}
	if err := s.countBackups(ctx, &n); err != nil {
		return n, err
	}
	if err := s.closed(); err != nil {
		n.Repository.Error = s.why()
	} else {
		info := s.repo.Info()
		n.Repository = RepositoryStatus{ID: info.ID, Data: info.Data, Parity: info.Parity, Losses: info.Losses, BlockSize: info.BlockSize, Format: info.Format}
		for _, x := range s.repo.Status(ctx) {
			n.Repository.Stores = append(n.Repository.Stores, StoreStatus{URL: x.URL, ID: x.ID, State: string(x.State), Error: x.Error, Owed: x.Owed})
		}
	}
	return n, nil
}

// countBackups counts what the catalog has, if that answers soon.
func (s *server) countBackups(ctx context.Context, n *NamedRepository) error {
	brief, cancel := context.WithTimeout(ctx, briefPatience)
	defer cancel()
	backups, err := s.cat.BackupsListed(brief, "")
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return err
	case brief.Err() != nil:
		n.CatalogError = fmt.Sprintf("it did not answer in %s: check %s", briefPatience, s.cat.Name())
	case errors.Is(err, catalog.ErrUnavailable):
		n.CatalogError = err.Error()
	default:
		return err
	}
	for _, b := range backups {
		if b.Status == catalog.Available || b.Status == catalog.Restoring {
			n.Backups++
		}
		if b.Undecided {
			n.Undecided++
		}
	}
	return nil
}
