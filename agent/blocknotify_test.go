package agent

import (
	"bufio"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hook is a webhook that keeps what it gets.
type hook struct {
	mu   sync.Mutex
	got  []Notification
	deal func(w http.ResponseWriter, n int) // with the n-th
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var x Notification
	err := json.NewDecoder(r.Body).Decode(&x)
	h.mu.Lock()
	h.got = append(h.got, x)
	n := len(h.got)
	h.mu.Unlock()
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if h.deal != nil {
		h.deal(w, n)
	}
}

// events are those of a backup, in order, each once.
func (h *hook) events(backup string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var l []string
	for _, x := range h.got {
		if x.Payload["backup_id"] == backup && x.Type != eventProgress && !slices.Contains(l, x.Type) {
			l = append(l, x.Type)
		}
	}
	return l
}

// A webhook is told of all that happens, also when it fails now and then.
func TestBlockNotifications(t *testing.T) {
	h := &hook{deal: func(w http.ResponseWriter, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable) // is tried again
		}
		if n == 3 {
			w.WriteHeader(http.StatusNotFound) // is not
		}
	}}
	web := httptest.NewServer(h)
	defer web.Close()
	r := apiRig(t, func(r *rig) { r.webhook = web.URL })
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	id := r.backedUp(ann, v, nil)
	to := r.restoring(ann, id, "")
	r.becomes("volume", to, "available")
	r.becomes("backup", id, "available")
	r.call(202, ann, "DELETE", "backups/"+id, nil)
	r.becomes("backup", id, "gone")
	want := []string{eventCreateStart, eventCreateEnd, eventRestoreStart, eventRestoreEnd, eventDeleteStart, eventDeleteEnd}
	r.until("all notifications", func() bool { return slices.Equal(h.events(id), want) })
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.got {
		if x.Payload["tenant_id"] != "a" || x.Payload["user_id"] != "ann" || x.Publisher != "backup.here" || x.Priority != "INFO" {
			t.Errorf("%+v", x)
		}
	}
	if h.got[0].ID != h.got[1].ID || h.got[0].ID == h.got[2].ID {
		t.Errorf("what was refused as too busy was not sent again: %s, %s, %s", h.got[0].ID, h.got[1].ID, h.got[2].ID)
	}
}

// A webhook that hangs, or is not there, keeps nothing from going on, nor the agent from
// stopping.
func TestBlockHungWebhook(t *testing.T) {
	gate := make(chan struct{})
	h := &hook{deal: func(http.ResponseWriter, int) { <-gate }}
	web := httptest.NewServer(h)
	defer web.Close()
	defer close(gate)
	for _, url := range []string{web.URL, "http://127.0.0.1:1/"} {
		r := apiRig(t, func(r *rig) { r.webhook = url })
		v := r.disk(ann, nil)
		for range 3 {
			id := r.backedUp(ann, v, nil)
			r.call(202, ann, "DELETE", "backups/"+id, nil)
			r.becomes("backup", id, "gone")
		}
		started := time.Now()
		r.stopAgent()
		if d := time.Since(started); d > 5*time.Second {
			t.Errorf("the agent took %v to stop", d)
		}
		r.startAgent()
	}
}

// More than waits for a webhook is dropped, and whoever tells does not wait.
func TestNotifierFull(t *testing.T) {
	r := &rig{tester: t}
	h := newHub(Options{Webhook: "http://127.0.0.1:1/"})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range notifyQueue + 7 {
			h.notify.tell(t.Context(), eventCreateEnd, Backup{FailReason: "no"}, nil)
		}
	}()
	r.await(done)
	if n := h.notify.dropped.Load(); n != 7 {
		t.Errorf("%d were dropped", n)
	}
	if x := <-h.notify.queue; x.Priority != "ERROR" {
		t.Errorf("%+v", x)
	}
}

// Who asked for a change, by the API and by the agent's own socket, and what became of
// it, is in the audit log; who only looks is not.
func TestBlockAudit(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	id := r.backedUp(ann, v, nil)
	r.call(403, ann, "POST", "backups/"+id+"/action", object{"os-force_delete": nil})
	r.call(404, bob, "DELETE", "backups/"+id, nil)
	r.call(202, root, "DELETE", "backups/"+id, nil)
	r.backup(CreateBackup{Volume: v})
	f, err := os.Open(filepath.Join(r.dir, "agent", "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		var e auditEntry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e.Time.IsZero() || !strings.HasPrefix(e.Request, "req-") {
			t.Errorf("%+v", e)
		}
		lines = append(lines, strings.TrimSpace(strings.Join([]string{e.Actor, e.Project, e.Action, e.Object, http.StatusText(e.Result)}, " ")))
	}
	for _, want := range []string{
		"ann a volume.create volume " + v + " Accepted", "ann a backup.create backup " + id + " Accepted",
		"bob b backup.delete backup " + id + " Not Found", "root ops backup.delete backup " + id + " Accepted",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is not in the log: %q", want, lines)
		}
	}
	if !slices.ContainsFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "operator, uid ") && strings.Contains(l, "POST /v1/backups")
	}) {
		t.Errorf("nothing of the operator: %q", lines)
	}
	if slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "GET") }) {
		t.Errorf("looks are in the log: %q", lines)
	}
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "ann a backup.") && strings.HasSuffix(l, "Forbidden") }) {
		t.Errorf("no refusal: %q", lines)
	}
}

// What goes wrong at a webhook is told without its address, which may hold a secret.
func TestWebhookErrors(t *testing.T) {
	n := newNotifier(slog.New(slog.DiscardHandler), "here", "http://127.0.0.1:1/hook?token=secret")
	again, err := n.post(t.Context(), []byte("{}"))
	if err == nil || !again || strings.Contains(err.Error(), "secret") {
		t.Errorf("a webhook that is not there: %v, %v", again, err)
	}
	for address, ok := range map[string]bool{
		"https://hooks.example/a": true, "http://127.0.0.1:8080": true, "hooks.example": false, "ftp://hooks.example/": false, "http:///a": false, "https://%": false,
	} {
		if err := CheckWebhook(address); (err == nil) != ok || err != nil && strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// How far a backup is is shown among its metadata, and never kept there.
func TestBlockProgressKey(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	mine := map[string]any{"ticket": "1", progressKey: "42%"}
	b := r.backedUp(ann, v, object{"metadata": mine})
	see := func() object { return r.call(http.StatusOK, ann, http.MethodGet, "backups/"+b, nil) }
	if got := see(); got.text("backup", "metadata", progressKey) != "" || got.text("backup", "metadata", "ticket") != "1" {
		t.Errorf("made with progress: %v", got)
	}
	mine["ticket"] = "2"
	r.call(http.StatusOK, ann, http.MethodPut, "backups/"+b, object{"backup": object{"metadata": mine}})
	if got := see(); got.text("backup", "metadata", progressKey) != "" || got.text("backup", "metadata", "ticket") != "2" {
		t.Errorf("changed with progress: %v", got)
	}
}
