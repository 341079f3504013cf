package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// API is the Block Storage API that the agent serves beside its own.
type API struct {
	Listener net.Listener // the agent closes it
	Public   string       // URL that clients know the address by; empty = as they call it
	AuthURL  string       // where a refused client is told to ask for a token; empty = /identity at the same place
	Keystone string       // URL of the Identity service that is asked, for the status; empty = none
	Identity http.Handler
	// Authenticate says who makes a request.
	Authenticate func(*http.Request) (Caller, error)
	// Project returns the ID of the project that has this ID or name, or "", when the
	// administrator by asks for it in r.
	Project      func(r *http.Request, by Caller, name string) (string, error)
	StrictChains bool // a backup that others were started from is not deleted, as Cinder has it
}

// Bounds of a client of the API, which may be anybody.
const (
	apiHeaderTimeout = 10 * time.Second
	apiReadTimeout   = time.Minute
	apiWriteTimeout  = 5 * time.Minute
	apiWorkTimeout   = 2 * time.Minute // of a request, for whatever it waits
	apiHeaderBytes   = 64 << 10
)

// apiServer is what answers at the address.
func (h *hub) apiServer(base context.Context) *http.Server {
	a := h.o.API
	volume := cinderapi.New(cinderapi.Options{
		Service: h.service(), Authenticate: a.Authenticate, Explain: explain,
		Logger: h.plain, Public: a.Public, AuthURL: a.AuthURL, Project: a.Project, Audit: h.auditAPI,
	})
	mux := http.NewServeMux()
	mux.Handle("/", volume)
	if a.Identity != nil {
		for _, path := range []string{"/identity", "/identity/", "/v2", "/v2/", "/v2.0", "/v2.0/"} {
			mux.Handle(path, a.Identity)
		}
	}
	return &http.Server{
		Handler: within(apiWorkTimeout, mux), ReadHeaderTimeout: apiHeaderTimeout, ReadTimeout: apiReadTimeout, WriteTimeout: apiWriteTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: apiHeaderBytes, BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog: slog.NewLogLogger(h.o.Logger.Handler(), slog.LevelDebug),
	}
}

// within gives requests up that take longer: a data plane that hangs must not keep them,
// and what they hold, for ever.
func within(most time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), most)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// auditAPI records a change that came through the API.
func (h *hub) auditAPI(ctx context.Context, e cinderapi.Entry) {
	h.record(ctx, auditEntry{
		Actor: e.Caller.UserID, User: e.Caller.UserName, Project: e.Caller.ProjectID, Admin: e.Caller.Admin, Request: e.RequestID,
		Action: e.Action, Object: strings.TrimSuffix(e.Object.Type+" "+e.Object.ID, " "), Result: e.Status, Error: e.Fault,
	})
}

// record writes to the audit log. What was done is done: a full disk is told in the log.
func (h *hub) record(ctx context.Context, e auditEntry) {
	if err := h.audit.add(e); err != nil {
		h.o.Logger.LogAttrs(ctx, slog.LevelError, "audit log", slog.Any("entry", e), slog.Any("error", err))
	}
}

// audited records what comes over the agent's own socket and may change something.
func (h *hub) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(s, r)
		actor := "operator"
		if uid, ok := r.Context().Value(peerKey{}).(uint32); ok {
			actor = fmt.Sprintf("operator, uid %d", uid)
		}
		h.record(r.Context(), auditEntry{Actor: actor, Admin: true, Request: "req-" + uuid.NewString(), Action: r.Method + " " + r.URL.RequestURI(), Result: s.status})
	})
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers it.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// peerKey is where a connection's context has the user at its other end.
type peerKey struct{}

// withPeer is for [http.Server.ConnContext].
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return ctx // whoever it is may open the socket
	}
	return context.WithValue(ctx, peerKey{}, cred.Uid)
}
