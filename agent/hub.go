package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/priority"
	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// DefaultRepository is the name of the repository that is meant when none is
// named.
const DefaultRepository = "default"

// repoParameter is the parameter of a request that names a repository.
const repoParameter = "repo"

// reopenEvery is how often a repository that could not be opened is tried again,
// and firstOpen how long the agent waits for those that are not the default one
// before it answers. They are variables for tests.
var (
	reopenEvery = 15 * time.Second
	firstOpen   = 10 * time.Second
)

// hub is a running agent: a server for each repository, and what they share. The
// volumes are one, and so are the jobs that run at once, the names of exports and
// the checkpoints of a volume that have one name.
type hub struct {
	o       Options      // with a logger that adds the request
	plain   *slog.Logger // that does not
	volumes control      // of all
	foreign *router      // the same, once the agent runs
	icebox  *icebox      // the same
	pool    *pool
	reads   *throttles // of volumes
	servers []*server  // the default first; never changes
	broken  []broken   // the repositories that have none; never changes

	host   string
	notify *notifier
	audit  *auditLog // while the agent runs

	checkpoints sync.Mutex // held while checkpoints are dropped
	told        told       // what the catalog was told of the volumes
	heard       bell       // rings when another host calls or answers
	noting      keyed      // by volume, held while what is noted of it changes

	mu sync.Mutex // of what the servers claim

	failed chan error // why the agent cannot go on
}

// broken is a repository whose state cannot be opened. The others work without it, and
// give nothing up that it may need.
type broken struct {
	name string
	err  *Error
}

func newHub(o Options) *hub {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	plain := o.Logger
	o.Logger = slog.New(requestLog{plain.Handler()})
	host := orElse(o.Host, hostName())
	return &hub{
		o: o, plain: plain, volumes: plane{o.Serve}, pool: newPool(o.Limits.ConcurrentJobs), reads: newThrottles(o.Limits.ReadBytesPerSecond),
		host: host, told: told{wake: make(chan struct{}, 1)}, notify: newNotifier(o.Logger, host, o.Webhook), failed: make(chan error, 3),
	}
}

// fail ends the agent.
func (h *hub) fail(err error) {
	select {
	case h.failed <- err:
	default: // it ends already
	}
}

// add makes one more server, whose state is in the folder dir.
func (h *hub) add(ctx context.Context, name, dir string) (*server, error) {
	s, err := newServer(ctx, h, name, dir)
	if err != nil {
		return nil, err
	}
	h.servers = append(h.servers, s)
	return s, nil
}

// close closes what the servers opened, the last first.
func (h *hub) close() error {
	var closers []func() error
	for _, s := range h.servers {
		closers = append(closers, s.close)
	}
	return closeAll(closers)
}

// CheckRepository refuses what cannot be the name of a repository beside the
// default one.
func CheckRepository(name string) error {
	if name == DefaultRepository {
		return refuse(CodeInvalid, "%q is the repository that is meant when none is named: choose another name", name)
	}
	return checkName("a repository", name)
}

func run(ctx context.Context, o Options, ready func()) (err error) {
	defer func() { err = errors.Join(err, o.TCP.Close()) }()
	if o.API != nil { // also when it never comes to serving
		defer func() {
			if cerr := o.API.Listener.Close(); !errors.Is(cerr, net.ErrClosed) {
				err = errors.Join(err, cerr)
			}
		}()
	}
	h := newHub(o)
	if !o.KeepPriority {
		priority.Lower(ctx, h.o.Logger)
	}
	lock, err := lockState(o.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close(), lock.Close()) }()
	if ierr := os.MkdirAll(o.NBDDir, 0o750); ierr != nil {
		return fmt.Errorf("make folder: %w", ierr)
	}
	foreign, err := source.Open(vfs.OS(), filepath.Join(o.State, "sources"))
	if err != nil {
		return err
	}
	h.foreign = &router{control: plane{o.Serve}, foreign: foreign}
	h.volumes = h.foreign
	if h.icebox, err = openIcebox(filepath.Join(o.State, "frozen"), h.o.Logger); err != nil {
		return err
	}
	if _, err = h.add(ctx, DefaultRepository, o.State); err != nil {
		return err
	}
	openers := []Opener{o.Open}
	for _, other := range o.Others {
		if err = CheckRepository(other.Name); err != nil {
			return err
		}
		dir := filepath.Join(o.State, "repositories", other.Name)
		s, aerr := h.add(ctx, other.Name, dir)
		if aerr != nil && ctx.Err() == nil {
			x := broken{other.Name, refuse(CodeUnavailable, "repository %s cannot be used, as its state in %s cannot be opened: %v: mend that, or move the folder away so that a new one is made from what the repository has, and start the agent again", other.Name, dir, aerr)}
			h.o.Logger.LogAttrs(ctx, slog.LevelError, "repository not usable", slog.String("name", x.name), slog.Any("error", x.err))
			h.broken = append(h.broken, x)
			continue
		}
		if aerr != nil {
			return aerr
		}
		s.o.Limits.Retain = other.Retain
		openers = append(openers, other.Open)
	}
	if h.audit, err = openAudit(o.State); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.audit.close()) }()
	l := o.Inherited
	if l == nil {
		if l, err = listen(ctx, o.Socket, 0o600); err != nil {
			return err
		}
	}
	return h.run(ctx, l, openers, ready)
}

// run starts the parts in order and stops them in reverse.
func (h *hub) run(ctx context.Context, l net.Listener, openers []Opener, ready func()) error {
	// Exports outlive the jobs, and the interface outlives both, so that
	// whoever waits for a job hears its end.
	base := context.WithoutCancel(ctx)
	exporting, stopExports := context.WithCancel(base)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopExports()
	for _, s := range h.servers {
		wg.Go(func() { s.exports.run(exporting) })
	}
	if h.o.TCP != nil {
		wg.Go(func() { h.exportTCP(exporting) })
	}
	wg.Go(func() { h.notify.run(exporting) })
	h.thawLeft(ctx)
	working, stopWork := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stopWork()
	if r := h.o.Repository; r != nil {
		s := h.servers[0]
		if err := s.take(ctx, r); err != nil {
			return errors.Join(err, l.Close())
		}
		close(s.tried)
		s.work(working, &work)
	}
	work.Go(func() { h.keepSweeping(working) })
	h.openAll(working, &work, openers)
	webs := []*http.Server{{
		Handler: h.audited(h.routes()), ReadHeaderTimeout: stopTimeout, IdleTimeout: idleTimeout,
		BaseContext: func(net.Listener) context.Context { return base }, ConnContext: withPeer,
	}}
	own := webs[0]
	wg.Go(func() { h.fail(fmt.Errorf("serve requests: %w", own.Serve(boundConnections(own, l, ownConnections)))) })
	if h.o.API != nil {
		api := h.apiServer(base)
		webs = append(webs, api)
		wg.Go(func() {
			h.fail(fmt.Errorf("serve requests: %w", api.Serve(boundConnections(api, h.o.API.Listener, apiConnections))))
		})
	}
	if ready != nil {
		ready()
	}
	if a := h.o.API; a != nil {
		h.o.Logger.LogAttrs(ctx, slog.LevelInfo, "serving the Block Storage API", slog.String("address", a.Listener.Addr().String()))
	}
	h.o.Logger.LogAttrs(ctx, slog.LevelInfo, "agent ready", slog.String("socket", h.o.Socket))
	var err error
	select {
	case <-ctx.Done():
	case err = <-h.failed:
	}
	stopWork()
	work.Wait()
	closing, cancel := context.WithTimeout(base, stopTimeout)
	defer cancel()
	for _, web := range webs {
		if serr := web.Shutdown(closing); serr != nil {
			err = errors.Join(err, web.Close())
		}
	}
	return err
}

// hostName is this machine's name.
func hostName() string {
	if host, err := os.Hostname(); err == nil {
		return host
	}
	return "localhost"
}

// routes is the HTTP interface: each call is answered by the server of the
// repository that it names.
func (h *hub) routes() http.Handler {
	handlers := make(map[string]http.Handler, len(h.servers))
	names := make([]string, 0, len(h.servers))
	for _, s := range h.servers {
		handlers[s.name] = s.routes()
		names = append(names, s.name)
	}
	for _, x := range h.broken {
		handlers[x.name] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, nil, x.err) })
		names = append(names, x.name)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := orElse(r.URL.Query().Get(repoParameter), DefaultRepository)
		handler, ok := handlers[name]
		if !ok {
			answer(w, nil, refuse(CodeNotFound, "the agent has no repository %q: it has %s", clip(name), strings.Join(names, ", ")))
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// all returns the servers of all repositories of the agent.
func (s *server) all() []*server {
	return s.hub.servers
}

// tidying keeps others from dropping checkpoints until what it returns is called.
func (s *server) tidying() func() {
	s.hub.checkpoints.Lock()
	return s.hub.checkpoints.Unlock
}
