package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// TestClaimerGone: of a call whose host took it and went away nobody is told that nothing
// was done.
func TestClaimerGone(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := openCatalog(t, where, "b")
	ctx := t.Context()
	id := uuid.NewString()
	data, err := json.Marshal(cinderapi.Volume{ID: id, Project: "a", Status: "available", Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err = b.BeatHost(ctx, catalog.Host{Name: "b", ID: "x"}); err != nil {
		t.Fatal(err)
	}
	if err = b.TellVolumes(ctx, []catalog.Volume{{ID: id, Kind: catalog.VolumeKind, Project: "a", Gigabytes: 1, Data: data}}, nil); err != nil {
		t.Fatal(err)
	}
	answered := make(chan string, 1)
	go func() {
		status, answer := a.try(ann, "DELETE", "volumes/"+id, nil)
		answered <- fmt.Sprint(status, answer)
	}()
	for ok := false; !ok; pause(ctx, lookAgain/10) {
		if _, ok, err = b.ClaimCall(ctx); err != nil {
			t.Fatal(err)
		}
	}
	age(t, where, "b")
	if got := <-answered; !strings.HasPrefix(got, "503") || !strings.Contains(got, "look whether it was done") {
		t.Error(got)
	}
}
