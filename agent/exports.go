package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/nbd"
)

// exports serves backups over NBD, each on a socket of its own. What is
// exported is in the catalog, and served again after a restart.
type exports struct {
	cat   *catalog.Catalog
	repo  *repository.Repository
	log   *slog.Logger
	dir   string            // of the sockets
	tcp   *tcpdoor.Settings // of the door over TCP; nil = there is none
	state string            // of the overlays: a folder for each

	changing sync.Mutex // one export or unexport at a time
	start    chan func(context.Context)

	mu     sync.Mutex
	served map[string]*served
	pins   map[string]catalog.Pin // those made, by export
}

// served is one export. Without a stop function it is not served: err says why.
type served struct {
	rec    catalog.Export
	size   int64
	export *nbd.Export
	end    <-chan struct{} // closed when its connections have to end
	stop   func() error    // ends it and returns when it has ended
	guests *guests
	err    error
}

func newExports(cat *catalog.Catalog, repo *repository.Repository, log *slog.Logger, dir string, tcp *tcpdoor.Settings, state string) *exports {
	return &exports{
		cat: cat, repo: repo, log: log, dir: dir, tcp: tcp, state: state,
		start: make(chan func(context.Context)), served: map[string]*served{},
		pins: map[string]catalog.Pin{},
	}
}

// run lends its context to the exports' servers, and ends them with it. What
// clients had flushed to overlays stays.
func (x *exports) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case f := <-x.start:
			wg.Go(func() { f(ctx) })
		case <-ctx.Done():
			return
		}
	}
}

// restore serves again what was exported when the agent last ran, and removes
// the overlays of what was not. An export that fails is listed with its error.
func (x *exports) restore(ctx context.Context) error {
	l, err := x.cat.Exports(ctx)
	if err != nil {
		return err
	}
	pins, err := x.cat.Pins(ctx)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Made {
			x.pin(p)
		}
	}
	known := map[string]bool{}
	for _, e := range l {
		known[e.Name] = true
		s, err := x.open(ctx, e, false)
		if err != nil {
			x.log.LogAttrs(ctx, slog.LevelError, "backup not exported again", slog.String("export", e.Name), slog.Any("error", err))
			s = &served{rec: e, err: err}
		}
		x.put(s)
	}
	return x.sweep(known)
}

// sweep removes overlays that belong to no export: an unexport or the making
// of one was interrupted.
func (x *exports) sweep(known map[string]bool) error {
	l, err := os.ReadDir(x.state)
	if err != nil {
		return fmt.Errorf("list overlays: %w", err)
	}
	for _, d := range l {
		if !known[d.Name()] {
			if err := os.RemoveAll(filepath.Join(x.state, d.Name())); err != nil {
				return fmt.Errorf("remove an old overlay: %w", err)
			}
		}
	}
	return nil
}

// retry opens exports again that could not be when the agent started.
func (x *exports) retry(ctx context.Context) {
	x.changing.Lock()
	defer x.changing.Unlock()
	for _, s := range x.all() {
		if s.stop != nil {
			continue
		}
		if again, err := x.open(ctx, s.rec, false); err == nil {
			x.put(again)
		}
	}
}

// add exports a backup, durably.
func (x *exports) add(ctx context.Context, e catalog.Export) (ExportInfo, error) {
	x.changing.Lock()
	defer x.changing.Unlock()
	if s, ok := x.get(e.Name); ok {
		if s.rec.Backup == e.Backup && s.rec.Overlay == e.Overlay && s.stop != nil {
			return x.info(s), nil
		}
		return ExportInfo{}, refuse(CodeConflict, "there is an export named %s already: unexport it first, or give this one a name", e.Name)
	}
	if _, err := os.Lstat(x.socket(e.Name)); err == nil && answers(ctx, x.socket(e.Name)) {
		return ExportInfo{}, refuse(CodeConflict, "the socket %s is in use: give the export another name", x.socket(e.Name))
	}
	s, err := x.open(ctx, e, true)
	if err != nil {
		return ExportInfo{}, err
	}
	if err := x.cat.PutExport(ctx, e); err != nil {
		return ExportInfo{}, errors.Join(err, s.stop(), os.RemoveAll(x.overlayDir(e.Name)))
	}
	x.put(s)
	return x.info(s), nil
}

// remove ends an export and discards its overlay. What a connected client wrote
// is discarded only by force.
func (x *exports) remove(ctx context.Context, name string, force bool) error {
	x.changing.Lock()
	defer x.changing.Unlock()
	s, ok := x.get(name)
	if !ok {
		return refuse(CodeNotFound, "there is no export %q: \"cairn export\" lists those there are", name)
	}
	if s.rec.Overlay && !force && s.guests != nil && !s.guests.close(ctx) {
		return refuse(CodeBusy, "export %s has a client, and what it wrote to the overlay would be lost: disconnect it first, or use --force", name)
	}
	// Forgotten first: what a crash leaves is swept at the next start.
	if err := x.cat.RemoveExport(ctx, name); err != nil {
		if s.guests != nil {
			s.guests.open()
		}
		return err
	}
	x.mu.Lock()
	delete(x.served, name)
	delete(x.pins, name)
	x.mu.Unlock()
	var err error
	if s.stop != nil {
		if err = s.stop(); err != nil {
			// The overlay is discarded: that its last flush failed harms nobody.
			x.log.LogAttrs(ctx, slog.LevelWarn, "export ended with an error", slog.String("export", name), slog.Any("error", err))
		}
	}
	if err := os.RemoveAll(x.overlayDir(name)); err != nil {
		return fmt.Errorf("discard the overlay of export %s: %w", name, err)
	}
	return nil
}

// of says how a backup is in use, if it is.
func (x *exports) of(backup string) (string, bool) {
	for _, s := range x.all() {
		if s.rec.Backup == backup {
			return orElse(s.rec.Purpose, "exported as "+s.rec.Name), true
		}
	}
	return "", false
}

// list describes all exports, by name.
func (x *exports) list() []ExportInfo {
	l := []ExportInfo{}
	for _, s := range x.all() {
		l = append(l, x.info(s))
	}
	return l
}

func (x *exports) all() []*served {
	x.mu.Lock()
	defer x.mu.Unlock()
	var l []*served
	for _, s := range x.served {
		l = append(l, s)
	}
	slices.SortFunc(l, func(a, b *served) int { return strings.Compare(a.rec.Name, b.rec.Name) })
	return l
}

func (x *exports) get(name string) (*served, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s, ok := x.served[name]
	return s, ok
}

func (x *exports) put(s *served) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.served[s.rec.Name] = s
}

func (x *exports) info(s *served) ExportInfo {
	i := ExportInfo{
		Name: s.rec.Name, Socket: x.socket(s.rec.Name), Kind: "backup", Backup: s.rec.Backup,
		Overlay: s.rec.Overlay, Purpose: s.rec.Purpose, Size: s.size, Created: s.rec.Created,
	}
	i.URI, i.TCPURI = nbd.URI(i.Socket, i.Name), x.tcp.URI(i.Name)
	if s.err != nil {
		i.Error = s.err.Error()
	}
	x.mu.Lock()
	i.Pinned = x.pins[i.Name].Backup == i.Backup
	x.mu.Unlock()
	if s.guests != nil {
		i.Clients = s.guests.count()
	}
	return i
}

func (x *exports) socket(name string) string     { return filepath.Join(x.dir, name+".sock") }
func (x *exports) overlayDir(name string) string { return filepath.Join(x.state, name) }
