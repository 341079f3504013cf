package catalog

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
)

// Fifty hosts reserve at once against a limit of ten: exactly ten have room.
func TestReserveAtOnce(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			all := agents(t, place(t))
			var wg sync.WaitGroup
			made, refused := make(chan string, 50), make(chan error, 50)
			for i := range 50 {
				wg.Go(func() {
					v := Volume{ID: fmt.Sprint("v", i), Kind: VolumeKind, Project: "p", Gigabytes: 3}
					if err := all[i%len(all)].For(fmt.Sprint("host", i%7)).ReserveVolume(t.Context(), v, map[string]int64{QuotaVolumes: 10, QuotaSize: -1}); err != nil {
						refused <- err
						return
					}
					made <- v.ID
				})
			}
			wg.Wait()
			close(refused)
			if len(made) != 10 {
				t.Errorf("%d were made", len(made))
			}
			for err := range refused {
				if q, ok := errors.AsType[*QuotaError](err); !ok || *q != (QuotaError{QuotaVolumes, 10, 10, 1}) {
					t.Fatal(err)
				}
			}
			if used, err := all[0].VolumeUsage(t.Context(), "p"); err != nil || !reflect.DeepEqual(used, map[string]int64{QuotaVolumes: 10, QuotaSnapshots: 0, QuotaSize: 30}) {
				t.Errorf("usage %v, %v", used, err)
			}
		})
	}
}

func TestReserve(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t)).For("a")
			ctx := t.Context()
			defaults := map[string]int64{QuotaVolumes: 2, QuotaSnapshots: 1, QuotaSize: 10, QuotaOneSize: 6}
			volume := func(id string, size int64) error {
				return c.ReserveVolume(ctx, Volume{ID: id, Kind: VolumeKind, Project: "p", Gigabytes: size}, defaults)
			}
			full := func(what string, err error, want QuotaError) {
				t.Helper()
				if q, ok := errors.AsType[*QuotaError](err); !ok || *q != want {
					t.Errorf("%s: %v", what, err)
				}
			}
			full("one too large", volume("x", 7), QuotaError{QuotaOneSize, 6, 0, 7})
			must(t, volume("v", 4), c.For("b").ReserveVolume(ctx, Volume{ID: "w", Kind: VolumeKind, Project: "p", Gigabytes: 2}, defaults))
			full("a third", volume("x", 1), QuotaError{QuotaVolumes, 2, 2, 1})
			must(t, volume("v", 6)) // enlarged
			snap := Volume{ID: "s", Kind: SnapshotKind, Project: "p", Gigabytes: 3}
			full("too much in all", c.ReserveVolume(ctx, snap, defaults), QuotaError{QuotaSize, 10, 8, 3})
			snap.Gigabytes = 2
			must(t, c.ReserveVolume(ctx, snap, defaults))
			snap.ID = "s2"
			full("a second snapshot", c.ReserveVolume(ctx, snap, defaults), QuotaError{QuotaSnapshots, 1, 1, 1})
			must(t, c.SetLimits(ctx, "p", map[string]int64{QuotaVolumes: 1, QuotaSize: 12}), volume("v", 6)) // fewer than there are: nothing more is taken
			for i := range 20 {                                                                              // the operator's
				must(t, c.ReserveVolume(ctx, Volume{ID: fmt.Sprint("o", i), Kind: VolumeKind, Gigabytes: 100}, defaults))
			}
		})
	}
}

// What hosts tell of their volumes: each its own, a volume of several counts once, and one
// that is gone is remembered while another host has it.
func TestTellVolumes(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			a, b := c.For("a"), c.For("b")
			v := Volume{ID: "v", Kind: VolumeKind, Project: "p", Gigabytes: 2, Epoch: 3, Open: true, Data: []byte(`{"x":1}`)}
			must(t, a.TellVolumes(ctx, []Volume{v, {ID: "w", Kind: VolumeKind, Epoch: 9, Data: []byte(`{}`)}}, nil), b.TellVolumes(ctx, []Volume{v}, nil), b.TellVolumes(ctx, nil, nil))
			if used, err := c.VolumeUsage(ctx, "p"); err != nil || used[QuotaVolumes] != 1 || used[QuotaSize] != 2 {
				t.Errorf("%v, %v", used, err)
			}
			v.Host = "a"
			w := v
			w.Host = "b"
			if l, err := c.VolumeAt(ctx, "v"); err != nil || !reflect.DeepEqual(l, []Volume{v, w}) {
				t.Errorf("%+v, %v", l, err)
			}
			must(t, a.TellVolumes(ctx, nil, []string{"v", "w", "never"}))
			gone := Volume{Host: "a", ID: "v", Kind: GoneKind, Epoch: 3}
			l, err := a.OwnVolumes(ctx)
			if err != nil || len(l) != 1 || len(l[0].Data) < 10 {
				t.Fatalf("%+v, %v", l, err)
			}
			if gone.Data = l[0].Data; !reflect.DeepEqual(l[0], gone) {
				t.Errorf("%+v", l)
			}
			if used, err := c.VolumeUsage(ctx, "p"); err != nil || used[QuotaVolumes] != 1 {
				t.Errorf("%v, %v", used, err)
			}
			must(t, a.TellVolumes(ctx, []Volume{v}, nil)) // it is back
			if l, err := c.Volumes(ctx); err != nil || !reflect.DeepEqual(l, []Volume{v, w}) {
				t.Errorf("%+v, %v", l, err)
			}
		})
	}
}

// A backup that another host has settled is not written to by the one that was taken to be
// down, and one that was deleted does not come back.
func TestPutBackupOf(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			a, b := c.For("a"), c.For("b")
			x := Backup{ID: "x", Status: Creating}
			must(t, a.PutBackup(ctx, x))
			x.Session = "s"
			must(t, a.PutBackupOf(ctx, x))
			settled := x
			x.Host, settled.Status = "a", Failed
			must(t, b.SettleBackup(ctx, settled, x))
			for _, err := range []error{a.PutBackupOf(ctx, x), c.For("c").SettleBackup(ctx, settled, x)} {
				if !errors.Is(err, ErrTaken) {
					t.Errorf("settled already: %v", err)
				}
			}
			if got, err := c.Backup(ctx, "x"); err != nil || got.Status != Failed || got.Host != "b" {
				t.Errorf("%+v, %v", got, err)
			}
			must(t, c.RemoveBackup(ctx, "x"))
			if err := b.PutBackupOf(ctx, x); !errors.Is(err, ErrTaken) {
				t.Errorf("deleted: %v", err)
			}
			if _, err := c.Backup(ctx, "x"); !errors.Is(err, ErrNotFound) {
				t.Errorf("it is back: %v", err)
			}
		})
	}
}

// Who settles what a host left that is down changes nothing that went on since it looked; and
// the job's own late record nothing that was settled since, also when the backup is
// its host's again.
func TestSettleBackup(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			a, b := c.For("a"), c.For("b")
			must(t, a.PutBackup(ctx, Backup{ID: "x", Status: Creating}))
			was, err := b.Backup(ctx, "x") // b takes a to be down
			must(t, err)
			failed := was
			failed.Status = Failed
			refused := func(err error, want Status) {
				t.Helper()
				if got, gerr := c.Backup(ctx, "x"); !errors.Is(err, ErrTaken) || gerr != nil || got.Status != want || got.Session != "s" {
					t.Errorf("%v; %+v, %v", err, got, gerr)
				}
			}
			// a was cut off only, and goes on.
			x := Backup{ID: "x", Status: Creating, Session: "s"}
			must(t, a.PutBackupOf(ctx, x))
			refused(b.SettleBackup(ctx, failed, was), Creating)
			x.Undecided = true
			must(t, a.PutBackupOf(ctx, x))
			refused(b.SettleBackup(ctx, failed, was), Creating)
			if was, err = b.Backup(ctx, "x"); err != nil {
				t.Fatal(err)
			}
			must(t, a.BeatHost(ctx, Host{Name: "a", ID: "id"}))
			refused(b.SettleBackup(ctx, failed, was), Creating) // it is up
			done := x
			done.Status, done.Undecided = Available, false
			must(t, a.PutBackupOf(ctx, done))
			refused(b.SettleBackup(ctx, failed, was), Available)
			// It is being deleted at a, whose job knows only now how it had ended.
			must(t, a.SetBackupStatus(ctx, "x", Available, Deleting))
			refused(a.PutBackupOf(ctx, done), Deleting)
		})
	}
}

// What was found in the repository is recorded once, and never over what somebody knows of
// it; a record goes only from the state that it is in.
func TestFoundAndGone(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			x := Backup{ID: "x", Status: Available, Metadata: map[string]string{"k": "v"}}
			if added, err := c.For("a").AddFound(ctx, x); err != nil || !added {
				t.Errorf("%v, %v", added, err)
			}
			must(t, c.For("a").SetBackupStatus(ctx, "x", Available, Deleting))
			if added, err := c.For("b").AddFound(ctx, x); err != nil || added {
				t.Errorf("over another's: %v, %v", added, err)
			}
			if got, err := c.Backup(ctx, "x"); err != nil || got.Status != Deleting || got.Host != "a" || got.Metadata["k"] != "v" {
				t.Errorf("%+v, %v", got, err)
			}
			if err := c.RemoveBackupIn(ctx, "x", Failed); !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			must(t, c.RemoveBackupIn(ctx, "x", Deleting))
			if err := c.RemoveBackupIn(ctx, "x", Deleting); !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		})
	}
}
