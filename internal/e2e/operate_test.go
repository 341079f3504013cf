package e2e

import (
	"context"
	"errors"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

// write runs f on a connection to the volume.
func (h *host) write(v agent.Volume, f func(context.Context, *nbd.Client) error) {
	h.t.Helper()
	c, err := nbd.Dial(h.t.Context(), v.URI, nbd.ClientOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := errors.Join(f(h.t.Context(), c), c.Close()); err != nil {
		h.t.Fatal(err)
	}
}

// backup makes a backup that must succeed.
func (h *host) backup(name string, req agent.CreateBackup) agent.Backup {
	h.t.Helper()
	job, err := h.control.CreateBackup(h.t.Context(), req)
	if err == nil {
		job, err = h.control.WaitJob(h.t.Context(), job.ID, nil)
	}
	if err != nil {
		h.t.Fatalf("backup of %s: %v", name, err)
	}
	if job.State != agent.JobSucceeded {
		h.t.Fatalf("backup of %s: %s: %s", name, job.State, job.Error)
	}
	rec, err := h.control.Backup(h.t.Context(), job.Backup)
	if err != nil {
		h.t.Fatal(err)
	}
	return rec
}

// restore restores a backup into a file.
func (h *host) restore(id, file string) {
	h.t.Helper()
	job, err := h.control.Restore(h.t.Context(), agent.Restore{Backup: id, File: file})
	if err == nil {
		job, err = h.control.WaitJob(h.t.Context(), job.ID, nil)
	}
	if err != nil || job.State != agent.JobSucceeded {
		h.t.Fatalf("restore: %s %s %v", job.State, job.Error, err)
	}
}
