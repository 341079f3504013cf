package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/nbd"
)

// Callers of the API as its tests know them: user, project, and whether they are an
// administrator.
const (
	ann  = "ann:a:"
	bob  = "bob:b:"
	root = "root:ops:admin"
)

var (
	errWho  = errors.New("who is that")
	errAway = errors.New("its stores are away")
)

// errOpener opens nothing.
func errOpener(context.Context) (*repository.Repository, error) { return nil, errAway }

// api is the Block Storage API that an agent of the rig serves, if it does.
func (r *rig) api() *API {
	r.Helper()
	if !r.served {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	r.url = "http://" + l.Addr().String()
	return &API{Listener: l, StrictChains: r.strict, Authenticate: func(req *http.Request) (Caller, error) {
		who := strings.Split(req.Header.Get("X-Auth-Token"), ":")
		if len(who) != 3 {
			return Caller{}, errWho
		}
		return Caller{UserID: who[0], UserName: who[0], ProjectID: who[1], ProjectName: who[1], Admin: who[2] != ""}, nil
	}}
}

// apiRig is a rig with the Block Storage API, after change.
func apiRig(t *testing.T, change func(r *rig)) *rig {
	t.Helper()
	r := testRig(t)
	r.stopAgent()
	r.served = true
	if change != nil {
		change(r)
	}
	r.startAgent()
	return r
}

// object is a JSON object.
type object map[string]any

// at follows keys.
func (o object) at(keys ...string) any {
	var v any = map[string]any(o)
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

func (o object) text(keys ...string) string {
	s, ok := o.at(keys...).(string)
	if !ok {
		return ""
	}
	return s
}

// fault is the sentence of an answer that refuses.
func (o object) fault() string {
	for k := range o {
		if s := o.text(k, "message"); s != "" {
			return s
		}
	}
	return ""
}

// try makes a call and returns its answer, also from goroutines: a call that has none
// has the status 0.
func (r *rig) try(who, method, path string, body any) (int, object) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		return 0, object{"error": map[string]any{"message": err.Error()}}
	}
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url+"/volume/v3/"+path, in)
	if err != nil {
		return 0, object{"error": map[string]any{"message": err.Error()}}
	}
	req.Header.Set("X-Auth-Token", who)
	req.Header.Set("OpenStack-API-Version", "volume 3.70")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, object{"error": map[string]any{"message": err.Error()}}
	}
	defer func() { _ = resp.Body.Close() }()
	answer := object{}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && !errors.Is(err, io.EOF) {
		return 0, object{"error": map[string]any{"message": err.Error()}}
	}
	return resp.StatusCode, answer
}

// call makes a call that must have this status.
func (r *rig) call(want int, who, method, path string, body any) object {
	r.Helper()
	status, answer := r.try(who, method, path, body)
	if status != want {
		r.Fatalf("%s %s as %s: %d %v, want %d", method, path, who, status, answer, want)
	}
	return answer
}

// refused makes a call that must be refused with this status and a sentence that says
// this.
func (r *rig) refused(want int, says, who, method, path string, body any) {
	r.Helper()
	if got := r.call(want, who, method, path, body).fault(); !strings.Contains(got, says) {
		r.Fatalf("%s %s as %s: %q, want %q", method, path, who, got, says)
	}
}

func (r *rig) get(who, path string) object {
	r.Helper()
	return r.call(http.StatusOK, who, http.MethodGet, path, nil)
}

// state is the status of a volume, snapshot or backup, "gone" when there is none.
func (r *rig) state(what, id string) string {
	r.Helper()
	status, answer := r.try(root, http.MethodGet, what+"s/"+id, nil)
	if status == http.StatusNotFound {
		return "gone"
	}
	if status != http.StatusOK {
		r.Fatalf("%s %s: %d %v", what, id, status, answer)
	}
	return answer.text(what, "status")
}

// becomes waits until a thing has a status.
func (r *rig) becomes(what, id, want string) {
	r.Helper()
	got := ""
	for range 2000 {
		if got = r.state(what, id); got == want {
			return
		}
		pause(context.Background(), 10*time.Millisecond)
	}
	r.Fatalf("%s %s is %s, want %s: %v", what, id, got, want, r.get(root, what+"s/"+id))
}

// disk makes a volume of 1 GiB with more in its body, and returns its ID.
func (r *rig) disk(who string, more object) string {
	r.Helper()
	body := object{"size": 1, "name": "disk"}
	maps.Copy(body, more)
	id := r.call(http.StatusAccepted, who, http.MethodPost, "volumes", object{"volume": body}).text("volume", "id")
	r.becomes("volume", id, "available")
	return id
}

// fill writes to a volume.
func (r *rig) fill(volume string, p []byte, off int64) {
	r.Helper()
	v, err := r.serve.Volume(context.Background(), volume)
	if err != nil {
		r.Fatal(err)
	}
	r.write(v.URI, func(c *nbd.Client) error { return c.WriteAt(context.Background(), p, off, false) })
	r.idle(volume)
}

// holds checks what is at the beginning of a volume.
func (r *rig) holds(volume string, want []byte) {
	r.Helper()
	v, err := r.serve.Volume(context.Background(), volume)
	if err != nil {
		r.Fatal(err)
	}
	c := r.dial(v.URI)
	p := make([]byte, len(want))
	if err := errors.Join(c.ReadAt(context.Background(), p, 0), c.Close()); err != nil {
		r.Fatal(err)
	}
	r.equal("volume "+volume, p, want)
	r.idle(volume)
}

// backing begins a backup with more in its body, and returns its ID.
func (r *rig) backing(who, volume string, more object) string {
	r.Helper()
	body := object{"volume_id": volume, "name": "copy"}
	maps.Copy(body, more)
	return r.call(http.StatusAccepted, who, http.MethodPost, "backups", object{"backup": body}).text("backup", "id")
}

// backedUp is backing, and waits until it is available.
func (r *rig) backedUp(who, volume string, more object) string {
	r.Helper()
	id := r.backing(who, volume, more)
	r.becomes("backup", id, "available")
	return id
}

// restoring begins to restore, to a new volume if it is "", and returns the volume's ID.
func (r *rig) restoring(who, backup, volume string) string {
	r.Helper()
	body := object{}
	if volume != "" {
		body["volume_id"] = volume
	}
	return r.call(http.StatusAccepted, who, http.MethodPost, "backups/"+backup+"/restore", object{"restore": body}).text("restore", "volume_id")
}

func (r *rig) act(want int, who, what, id, action string, arg any) object {
	r.Helper()
	return r.call(want, who, http.MethodPost, what+"s/"+id+"/action", object{action: arg})
}
