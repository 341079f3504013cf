package agent

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// TestNoDatabase: while the catalog's database is away the API says so, and not where it is,
// and the status tells what it can.
func TestNoDatabase(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a server's recovery")
	}
	db := pgtest.New(t)
	a := hostRig(t, db.URL("postgres"), "a", nil)
	v := a.disk(ann, nil)
	a.fill(v, noise(1<<20), 0)
	id := a.backedUp(ann, v, nil)
	db.Kill(t)
	for _, x := range []struct {
		who, method, path string
		body              any
	}{
		{ann, http.MethodGet, "volumes/detail", nil},
		{ann, http.MethodGet, "volumes/" + v, nil},
		{ann, http.MethodGet, "snapshots", nil},
		{ann, http.MethodGet, "backups/detail", nil},
		{ann, http.MethodGet, "backups/" + id, nil},
		{ann, http.MethodGet, "limits", nil},
		{root, http.MethodGet, "os-services", nil},
		{root, http.MethodGet, "os-quota-sets/a?usage=True", nil},
		{ann, http.MethodPost, "volumes", object{"volume": object{"size": 1}}},
		{ann, http.MethodPost, "snapshots", object{"snapshot": object{"volume_id": v}}},
		{ann, http.MethodPost, "backups", object{"backup": object{"volume_id": v}}},
		{ann, http.MethodPost, "backups/" + id + "/restore", object{"restore": object{}}},
		{ann, http.MethodPut, "backups/" + id, object{"backup": object{"name": "x"}}},
		{ann, http.MethodDelete, "backups/" + id, nil},
		{ann, http.MethodDelete, "volumes/" + v, nil},
	} {
		status, answer := a.try(x.who, x.method, x.path, x.body)
		if text := answer.fault(); status != http.StatusServiceUnavailable || !strings.Contains(text, "its database does not answer") || strings.Contains(text, "postgres") {
			t.Errorf("%s %s: %d %v", x.method, x.path, status, answer)
		}
	}
	st, err := a.agent.Status(t.Context())
	if err != nil || !strings.Contains(st.CatalogError, "postgres://cairn@") || st.Backups != 0 || len(st.Repository.Stores) != len(a.stores) {
		t.Errorf("%+v, %v", st, err)
	}
	db.Start(t)
	a.until("the database answers", func() bool {
		pause(context.Background(), 20*time.Millisecond)
		st, err := a.agent.Status(t.Context())
		return err == nil && st.CatalogError == "" && st.Backups == 1
	})
	if got := a.state("backup", id); got != "available" {
		t.Errorf("the backup is %s", got)
	}
}

// TestStatusOfHangingDatabase: a status waits for the catalog only so long.
func TestStatusOfHangingDatabase(t *testing.T) {
	was := briefPatience
	briefPatience = 100 * time.Millisecond
	t.Cleanup(func() { briefPatience = was }) // when the agent has ended
	where, proxy := throughProxy(t, pgtest.Database(t))
	a := hostRig(t, where, "a", nil)
	proxy.Set(s3test.Trouble{Hang: true})
	defer proxy.Set(s3test.Trouble{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	st, err := a.agent.Status(ctx)
	if err != nil || !strings.Contains(st.CatalogError, "did not answer in 100ms: check postgres://") {
		t.Errorf("%+v, %v", st, err)
	}
}
