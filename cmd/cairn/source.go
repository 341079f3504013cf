package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/fusefs"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/nbd"
)

// repositorySource lists and opens backups on the stores.
type repositorySource struct{ r *repository.Repository }

var _ fusefs.Source = (*repositorySource)(nil)

// List implements fusefs.Source.
func (s *repositorySource) List(ctx context.Context) ([]fusefs.Entry, error) {
	backups, err := s.r.Backups(ctx)
	if err != nil {
		return nil, err
	}
	var entries []fusefs.Entry
	for _, b := range backups {
		if b.State == repository.Available {
			entries = append(entries, entry(record(b)))
		}
	}
	return entries, nil
}

// Open implements fusefs.Source.
func (s *repositorySource) Open(ctx context.Context, id string) (fusefs.Image, error) {
	return s.r.Image(ctx, id)
}

func entry(b agent.Backup) fusefs.Entry {
	return fusefs.Entry{ID: b.ID, Name: b.Name, Volume: b.Volume, VolumeID: b.VolumeID, Size: b.Size, Created: b.Created}
}

// exportSource lists backups of the agent, and opens them by having the agent
// export them and reading that by NBD.
type exportSource struct {
	agent   *agent.Client
	prefix  string // of the names of this mount's exports
	purpose string // of the exports, for whoever wants to delete what is mounted
}

var _ fusefs.Source = (*exportSource)(nil)

// mountPrefix begins the name of every export that a mount made for itself:
// mount-PID-RANDOM-BACKUP.
const mountPrefix = "mount-"

// newExportSource returns the source of a mount on dir.
func newExportSource(a *agent.Client, dir string) (*exportSource, error) {
	dir, err := absolute(dir)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return &exportSource{
		agent: a, prefix: fmt.Sprintf("%s%d-%s-", mountPrefix, os.Getpid(), hex.EncodeToString(b)), purpose: mountPurpose(dir, os.Getpid()),
	}, nil
}

// maxMountDir keeps a purpose within what the agent takes.
const maxMountDir = 200

// mountPurpose says who uses a backup that is mounted. A name that cannot be
// shown on a line must not keep it from being mounted.
func mountPurpose(dir string, pid int) string {
	if len(dir) > maxMountDir || !utf8.ValidString(dir) || strings.ContainsFunc(dir, unicode.IsControl) {
		return fmt.Sprintf("mounted by process %d", pid)
	}
	return fmt.Sprintf("mounted on %s by process %d", dir, pid)
}

// sweep takes back the exports of mounts that were killed.
func (s *exportSource) sweep(ctx context.Context) error {
	exports, err := s.agent.Exports(ctx)
	if err != nil {
		return err
	}
	for _, e := range exports {
		rest, ours := strings.CutPrefix(e.Name, mountPrefix)
		pid, _, ok := strings.Cut(rest, "-")
		n, err := strconv.Atoi(pid)
		if !ours || !ok || err != nil || e.Clients > 0 || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			continue
		}
		if err := s.agent.Unexport(ctx, e.Name); err != nil && !errors.Is(err, agent.ErrNotFound) {
			return err
		}
	}
	return nil
}

// List implements fusefs.Source.
func (s *exportSource) List(ctx context.Context) ([]fusefs.Entry, error) {
	backups, err := s.agent.Backups(ctx)
	if err != nil {
		return nil, err
	}
	var entries []fusefs.Entry
	for _, b := range backups {
		if b.Status == agent.BackupAvailable || b.Status == agent.BackupRestoring {
			entries = append(entries, entry(b))
		}
	}
	return entries, nil
}

// Open implements fusefs.Source.
func (s *exportSource) Open(ctx context.Context, id string) (fusefs.Image, error) {
	name := s.prefix + id[:min(8, len(id))]
	e, err := s.agent.Export(ctx, agent.Export{Ref: id, Name: name, Purpose: s.purpose})
	if err != nil {
		return nil, err
	}
	img := &exportImage{agent: s.agent, name: name}
	img.conn, err = nbd.Dial(ctx, e.URI, nbd.ClientOptions{
		Contexts: []string{nbd.ContextAllocation}, Conns: imageConns, Reconnect: imagePatience,
	})
	if err != nil {
		return nil, errors.Join(err, img.unexport()) //nolint:contextcheck // the export must go also when ctx has ended
	}
	return img, nil
}

const (
	imageConns    = 4                // enough for the kernel's read-ahead to keep the stores busy
	imagePatience = 30 * time.Second // that a reader waits for an agent that is restarted
	unexportFor   = 10 * time.Second
)

// exportImage is a backup that the agent exports for this mount. An agent that
// is restarted exports it again under the same name, so that what is behind a
// connection that is made anew is the same backup.
type exportImage struct {
	agent *agent.Client
	name  string
	conn  *nbd.Client
}

// Size implements fusefs.Image.
func (i *exportImage) Size() int64 { return i.conn.Size() }

// ReadAt implements fusefs.Image.
func (i *exportImage) ReadAt(ctx context.Context, p []byte, off int64) error {
	return i.conn.ReadAt(ctx, p, off)
}

// Extents implements fusefs.Image.
func (i *exportImage) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	return i.conn.Map(ctx, nbd.ContextAllocation, off, n)
}

// Close implements fusefs.Image: the export goes with its only reader.
func (i *exportImage) Close() error { return errors.Join(i.conn.Close(), i.unexport()) }

// unexport takes the export back.
func (i *exportImage) unexport() error {
	ctx, cancel := context.WithTimeout(context.Background(), unexportFor)
	defer cancel()
	if err := i.agent.Unexport(ctx, i.name); err != nil && !errors.Is(err, agent.ErrNotFound) {
		return err
	}
	return nil
}
