package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

const (
	soakSize  = 6 * mib
	soakBlock = 64 << 10
)

// TestSoak: three agents on one repository back up, delete, take back, restore
// and prune at once, and die at random. Every backup that is listed as available
// restores exactly, all the time; in the end three quiet prunes leave no garbage
// and a check finds nothing. CAIRN_MINUTES says how long; half a minute otherwise.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	soak(t, newHost(t), func(context.Context, *rand.Rand) {})
}

// TestSoakS3 is TestSoak with 4+2 on six S3 servers, of which one after the other
// dies too, and comes back with what it kept.
func TestSoakS3(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	servers := sixServers(t)
	first := newHostOn(t, 4, 2, func(string) []string { return urlsOf(servers, "backups/host") })
	deaths := 0
	soak(t, first, func(ctx context.Context, rng *rand.Rand) {
		for pause(ctx, rng, 12*time.Second) {
			s := servers[rng.IntN(len(servers))]
			s.Kill(t)
			deaths++
			pause(ctx, rng, 2*time.Second)
			s.Start(t)
		}
	})
	t.Logf("%d times a server died", deaths)
}

// pause waits for up to a time, and says whether ctx goes on.
func pause(ctx context.Context, rng *rand.Rand, most time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Duration(rng.Int64N(int64(most)))):
		return true
	}
}

// soak runs three agents, of which the first is there, beside what disturb does
// to their stores until its context ends. It leaves all stores answering.
func soak(t *testing.T, first *host, disturb func(context.Context, *rand.Rand)) {
	t.Helper()
	length := 30 * time.Second
	if s := os.Getenv("CAIRN_MINUTES"); s != "" {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("CAIRN_MINUTES=%q is not a number", s)
		}
		length = time.Duration(n * float64(time.Minute))
	}
	rng := seed(t)
	crews := make([]*crew, 3)
	for i := range crews {
		h := first
		if i > 0 {
			h = first.another()
		}
		crews[i] = newCrew(h, i, rand.New(rand.NewPCG(rng.Uint64(), uint64(i))))
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	failed := make([]error, len(crews))
	for i, c := range crews {
		wg.Go(func() {
			defer cancel() // one that fails ends it for all
			for ctx.Err() == nil && failed[i] == nil {
				failed[i] = c.round()
			}
		})
	}
	disturb(ctx, rand.New(rand.NewPCG(rng.Uint64(), uint64(len(crews)))))
	wg.Wait()
	for i, c := range crews {
		if err := errors.Join(failed[i], c.settle()); err != nil {
			t.Errorf("agent %d: %v", i, err)
		}
		t.Logf("agent %d: %s", i, c.figures())
	}
	if !t.Failed() {
		soakEnd(t, crews)
	}
}

// soakEnd is the peace behind it.
func soakEnd(t *testing.T, crews []*crew) {
	t.Helper()
	// What stores that were away are owed is paid first.
	if out, err := crews[0].repo("repair", "--apply").CombinedOutput(); err != nil {
		t.Fatalf("repair: %v\n%s", err, out)
	}
	for n := range 3 {
		c := crews[n]
		if out, err := c.prune("1s").CombinedOutput(); err != nil {
			t.Fatalf("quiet prune %d: %v\n%s", n, err, out)
		}
	}
	stores := crews[0].openStores()
	r, err := repository.Open(t.Context(), repository.Options{Stores: stores, Password: []byte("correct horse battery staple")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := r.Check(t.Context(), repository.CheckOptions{ReadData: true})
	if err != nil || !report.OK() {
		t.Errorf("check: %v, %+v", err, report)
	}
	packs, left := make(map[string]bool), []string(nil)
	for _, s := range stores {
		err := s.List(t.Context(), "", func(i objstore.Info) error {
			switch {
			case strings.HasPrefix(i.Name, "packs/"):
				packs[i.Name] = true
			case strings.HasSuffix(i.Name, "/open"), strings.HasSuffix(i.Name, "/condemned"), strings.HasPrefix(i.Name, "probe/"):
				left = append(left, s.URL()+": "+i.Name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(packs) != report.Packs || len(left) > 0 {
		t.Errorf("three quiet prunes left %d packs, and backups need %d; left are %v", len(packs), report.Packs, left)
	}
	available, made, kills := 0, 0, 0
	for _, b := range report.Backups {
		var want []byte
		for _, c := range crews {
			if image := c.contents[b.Backup.ID]; image != nil {
				want = image
			}
		}
		if b.Backup.State != repository.Available || want == nil {
			t.Errorf("backup %s is %s, and was made: %v", b.Backup.ID, b.Backup.State, want != nil)
			continue
		}
		available++
		img, err := r.Image(t.Context(), b.Backup.ID)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, img.Size())
		if err = errors.Join(img.ReadAt(t.Context(), got, 0), img.Close()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("backup %s differs, %v", b.Backup.ID, err)
		}
	}
	for _, c := range crews {
		for id := range c.held {
			if !slices.ContainsFunc(report.Backups, func(b repository.BackupReport) bool { return b.Backup.ID == id }) {
				t.Errorf("backup %s was there and nobody deleted it", id)
			}
		}
		made, kills = made+c.made, kills+c.killed
	}
	t.Logf("%d backups made, %d agents and prunes killed; %d backups and %d packs are left", made, kills, available, len(packs))
	if made < 6 || kills < 3 {
		t.Errorf("%d backups made and %d kills: next to nothing was tested", made, kills)
	}
}
