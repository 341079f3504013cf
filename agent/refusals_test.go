package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	r.volume("small", 64<<10)
	long := strings.Repeat("x", 256)
	backup := func(req CreateBackup) error { _, err := r.agent.CreateBackup(ctx, req); return err }
	restore := func(req Restore) error { _, err := r.agent.Restore(ctx, req); return err }
	if err := backup(CreateBackup{Volume: "disk", Incremental: true}); !errors.Is(err, ErrConflict) || !strings.HasPrefix(err.Error(), "No backups available to do an incremental backup") {
		t.Errorf("incremental of nothing: %v", err)
	}
	b := r.backup(CreateBackup{Volume: "disk", Name: "twin"})
	r.backup(CreateBackup{Volume: "disk", Name: "twin"})
	c := r.dial(v.URI)
	data, err := r.serve.Volume(ctx, "disk")
	if err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(r.dir, "given.raw")
	if err := os.WriteFile(given, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "given", File: given}); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(r.dir, "linked.raw")
	if err := os.Link(given, linked); err != nil {
		t.Fatal(err)
	}
	over := func(file string) error { return restore(Restore{Backup: b.ID, File: file, Overwrite: true}) }
	for name, x := range map[string]struct {
		err  error
		want *Error
		text string
	}{
		"in use":             {backup(CreateBackup{Volume: "disk"}), ErrBusy, "must use the force flag"},
		"no volume":          {backup(CreateBackup{}), ErrInvalid, "no volume"},
		"unknown volume":     {backup(CreateBackup{Volume: "dusk"}), ErrNotFound, "dusk"},
		"both":               {backup(CreateBackup{Volume: "disk", Incremental: true, Auto: true}), ErrInvalid, "exclude"},
		"long name":          {backup(CreateBackup{Volume: "disk", Name: long}), ErrInvalid, "255"},
		"control":            {backup(CreateBackup{Volume: "disk", Description: "a\nb"}), ErrInvalid, "printable"},
		"name like an ID":    {backup(CreateBackup{Volume: "disk", Name: b.ID}), ErrInvalid, "looks like an ID"},
		"unknown snapshot":   {backup(CreateBackup{Volume: "disk", Snapshot: "none"}), ErrNotFound, "none"},
		"ambiguous":          {restore(Restore{Backup: "twin"}), ErrConflict, b.ID},
		"unknown backup":     {restore(Restore{Backup: "none"}), ErrNotFound, "none"},
		"two targets":        {restore(Restore{Backup: b.ID, Volume: "disk", File: "/tmp/x"}), ErrInvalid, "several targets"},
		"to one in use":      {restore(Restore{Backup: b.ID, Volume: "disk"}), ErrBusy, "disconnect"},
		"to a small one":     {restore(Restore{Backup: b.ID, Volume: "small"}), ErrInvalid, "extend"},
		"to a relative path": {restore(Restore{Backup: b.ID, File: "x.raw"}), ErrInvalid, "absolute"},
		"to no folder":       {restore(Restore{Backup: b.ID, File: "/no/such/folder/x"}), ErrConflict, "/no/such/folder"},
		"over the catalog":   {over(filepath.Join(r.dir, "agent", "catalog.db")), ErrInvalid, "state folder"},
		"into the state":     {over(filepath.Join(r.dir, "agent", "new.raw")), ErrInvalid, "state folder"},
		"over a volume":      {over(data.Path), ErrInvalid, "data of volume disk"},
		"over a given file":  {over(given), ErrInvalid, "data of volume given"},
		"over a link to it":  {over(linked), ErrInvalid, "data of volume given"},
		"new, but there":     {restore(Restore{Backup: b.ID, NewVolume: "small"}), ErrConflict, "there already"},
		"bad volume name":    {restore(Restore{Backup: b.ID, NewVolume: "a/b"}), ErrInvalid, "letters"},
		"overwrite what":     {restore(Restore{Backup: b.ID, Overwrite: true}), ErrInvalid, "for files"},
		"volume name":        {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "../x", Size: 1})), ErrInvalid, "../x"},
		"volume size":        {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "x", Size: -1})), ErrInvalid, ""},
		"volume twice":       {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "disk", Size: 1 << 20})), ErrConflict, "disk"},
		"shrink":             {second(r.agent.ExtendVolume(ctx, "disk", 5)), ErrInvalid, ""},
		"export nothing":     {second(r.agent.Export(ctx, Export{})), ErrInvalid, "nothing is named"},
		"export unknown":     {second(r.agent.Export(ctx, Export{Ref: "none"})), ErrNotFound, "none"},
		"overlay of volume":  {second(r.agent.Export(ctx, Export{Ref: "disk", Overlay: true})), ErrInvalid, "overlay"},
		"dots":               {second(r.agent.Volume(ctx, "..")), ErrNotFound, `".."`},
		"dot deleted":        {r.agent.DeleteSnapshot(ctx, "."), ErrNotFound, `"."`},
		"dot restored":       {second(r.agent.CancelJob(ctx, ".")), ErrNotFound, `"."`},
		"clipped name":       {second(r.agent.CreateVolume(ctx, CreateVolume{Name: long, Size: 1 << 20})), ErrInvalid, "xxx…\""},
		"unexport unknown":   {r.agent.Unexport(ctx, "none"), ErrNotFound, "none"},
		"delete unknown":     {r.agent.DeleteBackup(ctx, "none"), ErrNotFound, "none"},
		"delete in use":      {r.agent.DeleteVolume(ctx, "disk"), ErrBusy, "disk"},
		"unknown job":        {second(r.agent.Job(ctx, "nonesuch")), ErrNotFound, "nonesuch"},
		"unknown wait":       {second(r.agent.WaitJob(ctx, "nonesuch", nil)), ErrNotFound, "nonesuch"},
		"negative limit":     {second(r.agent.Jobs(ctx, -1)), ErrInvalid, "limit"},
		"unknown call":       {r.agent.call(ctx, "GET", "/v1/nonsense", nil), ErrNotFound, "another version"},
		"unknown field":      {r.agent.call(ctx, "POST", "/v1/backups", map[string]int{"volum": 1}), ErrInvalid, "volum"},
		"no agent":           {second(NewClient(filepath.Join(r.dir, "nobody")).Status(ctx)), nil, "is cairn agent running"},
	} {
		if x.err == nil || x.want != nil && !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if l, err := r.agent.Backups(ctx); err != nil || len(l) != 2 {
		t.Errorf("refused backups left records: %+v, %v", l, err)
	}
	if err := Run(ctx, Options{State: filepath.Join(r.dir, "agent"), Socket: filepath.Join(r.dir, "other"), NBDDir: r.dir, KeepPriority: true}, nil); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("another agent (process %d) uses", os.Getpid())) {
		t.Errorf("a second agent on the same state: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
