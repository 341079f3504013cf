package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// routes is the HTTP interface to one repository; API.md describes it. What needs
// the stores waits for nothing: while these cannot be reached it is refused.
func (s *server) routes() http.Handler {
	m := http.NewServeMux()
	handle(m, "GET /v1/status", s.status)
	handle(m, "GET /v1/volumes", func(ctx context.Context, _ request) (any, error) { return s.volumes(ctx) })
	handle(m, "POST /v1/volumes", s.createVolume)
	handle(m, "GET /v1/volumes/{ref}", s.volume)
	handle(m, "POST /v1/volumes/{ref}/extend", s.extendVolume)
	handle(m, "POST /v1/volumes/{ref}/reopen", s.reopenVolume)
	handle(m, "DELETE /v1/volumes/{ref}", s.deleteVolume)
	handle(m, "GET /v1/volumes/{ref}/policy", s.policy)
	handle(m, "PUT /v1/volumes/{ref}/policy", s.setPolicy)
	handle(m, "PUT /v1/volumes/{ref}/quiesce", s.setQuiesce)
	handle(m, "POST /v1/volumes/{ref}/assign", s.assignVolume)
	handle(m, "GET /v1/volumes/{ref}/checkpoints", s.checkpoints)
	handle(m, "POST /v1/volumes/{ref}/checkpoints", s.createCheckpoint)
	handle(m, "DELETE /v1/volumes/{ref}/checkpoints/{name}", s.deleteCheckpoint)
	handle(m, "GET /v1/quotas/{ref}", s.quota)
	handle(m, "PUT /v1/quotas/{ref}", s.setQuota)
	handle(m, "GET /v1/services", func(ctx context.Context, _ request) (any, error) { return list(s.hub.blockStorage().Hosts(ctx)) })
	handle(m, "PUT /v1/services/{ref}", s.setService)
	handle(m, "DELETE /v1/services/{ref}", s.forgetHost)
	handle(m, "GET /v1/snapshots", s.snapshots)
	handle(m, "POST /v1/snapshots", s.createSnapshots)
	handle(m, "GET /v1/snapshots/{ref}", s.snapshot)
	handle(m, "DELETE /v1/snapshots/{ref}", s.deleteSnapshot)
	handle(m, "POST /v1/snapshots/{ref}/revert", s.revertVolume)
	handle(m, "GET /v1/backups", func(ctx context.Context, _ request) (any, error) { return list(s.cat.Backups(ctx)) })
	handle(m, "POST /v1/backups", s.whenOpen(s.createBackup))
	handle(m, "GET /v1/backups/{ref}", func(ctx context.Context, r request) (any, error) { return s.findBackup(ctx, r.ref) })
	handle(m, "DELETE /v1/backups/{ref}", s.whenOpen(s.deleteBackup))
	handle(m, "GET /v1/pins", s.whenOpen(s.pins))
	handle(m, "POST /v1/catalog/rebuild", s.whenOpen(s.rebuildCatalog))
	handle(m, "GET /v1/trash", s.whenOpen(func(ctx context.Context, _ request) (any, error) { return s.trash(ctx) }))
	handle(m, "POST /v1/trash/{ref}/undelete", s.whenOpen(s.undelete))
	handle(m, "POST /v1/restores", s.whenOpen(s.createRestore))
	handle(m, "GET /v1/jobs", s.listJobs)
	handle(m, "GET /v1/jobs/{ref}", func(ctx context.Context, r request) (any, error) { return s.jobs.find(ctx, r.ref) })
	handle(m, "POST /v1/jobs/{ref}/cancel", func(ctx context.Context, r request) (any, error) { return s.cancelJob(ctx, r.ref) })
	m.HandleFunc("GET /v1/jobs/{ref}/wait", s.waitJob)
	handle(m, "GET /v1/exports", func(context.Context, request) (any, error) { return s.exports.list(), nil })
	handle(m, "POST /v1/exports", s.export)
	handle(m, "DELETE /v1/exports/{ref}", s.whenOpen(s.unexport))
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, refuse(CodeNotFound, "the agent has no %s %s: is the client of another version?", r.Method, r.URL.Path))
	})
	return m
}

// request is what a handler gets to see.
type request struct {
	ref   string // the name or ID in the path
	name  string // behind it, of what belongs to that
	query map[string][]string
	body  []byte
}

// decode reads the body, strictly: a field that is not known is refused
// rather than ignored.
func (r request) decode(v any) error {
	dec := json.NewDecoder(bytes.NewReader(r.body))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil && dec.More() {
		err = errors.New("there is more after the object")
	}
	if err != nil {
		return refuse(CodeInvalid, "the request is not understood: %v", err)
	}
	return nil
}

func (r request) value(key string) string {
	if v := r.query[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// handle routes a pattern to a function that answers with JSON or an error.
func handle(m *http.ServeMux, pattern string, f func(ctx context.Context, r request) (any, error)) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			answer(w, nil, refuse(CodeInvalid, "the request cannot be read: %v", err))
			return
		}
		v, err := f(r.Context(), request{ref: r.PathValue("ref"), name: r.PathValue("name"), query: r.URL.Query(), body: body})
		answer(w, v, err)
	})
}

// answer writes a result or an error.
func answer(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		e := asError(err)
		v, status = e, e.Code.httpStatus()
	}
	if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		data, status = fmt.Appendf(nil, `{"code":"internal","error":%q}`, err.Error()), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // the client may have left, which is its right
}

// list makes an empty list of none, for JSON.
func list[T any](l []T, err error) (any, error) {
	if l == nil {
		l = []T{}
	}
	return l, err
}

func (s *server) listJobs(ctx context.Context, r request) (any, error) {
	limit := defaultListed
	if v := r.value("limit"); v != "" && v != "0" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > keepJobs {
			return nil, refuse(CodeInvalid, "limit %q is not a number from 1 to %d", v, keepJobs)
		}
		limit = n
	}
	return list(s.jobs.jobs(ctx, limit))
}

// waitJob streams a job, one JSON object a line, until it has ended.
func (s *server) waitJob(w http.ResponseWriter, r *http.Request) {
	j, err := s.jobs.find(r.Context(), r.PathValue("ref"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		data, err := json.Marshal(j)
		if err != nil {
			return // a job is always JSON
		}
		if _, ierr := w.Write(append(data, '\n')); ierr != nil || out.Flush() != nil || j.State.Final() {
			return
		}
		var done chan struct{} // stays nil for a job that only the catalog knows
		if t, _, ok := s.jobs.live(j.ID); ok {
			done = t.done
		} else if k, ok := s.jobs.known(j.ID); ok {
			j = k
			continue
		}
		select {
		case <-tick.C:
		case <-done:
		case <-r.Context().Done():
			return
		}
		if j, err = s.jobs.current(r.Context(), j.ID); err != nil {
			return
		}
	}
}
