package catalog

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// Fifty create at once against a limit of ten: exactly ten are made, each other is
// told which limit it was.
func TestQuotaAtOnce(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			all := agents(t, place(t))
			c := all[0]
			var wg sync.WaitGroup
			made, refused := make(chan string, 50), make(chan error, 50)
			for i := range 50 {
				wg.Go(func() {
					b := Backup{ID: fmt.Sprint("b", i), Project: "p", Status: Creating, Size: 3 << 30}
					if err := all[i%len(all)].AddBackup(t.Context(), b, map[string]int64{QuotaBackups: 10, QuotaGigabytes: -1}); err != nil {
						refused <- err
						return
					}
					made <- b.ID
				})
			}
			wg.Wait()
			if len(made) != 10 {
				t.Errorf("%d were made", len(made))
			}
			close(refused)
			for err := range refused {
				q, ok := errors.AsType[*QuotaError](err)
				if !ok || *q != (QuotaError{QuotaBackups, 10, 10, 1}) {
					t.Fatal(err)
				}
			}
			if used, err := c.BackupUsage(t.Context(), "p"); err != nil || used[QuotaBackups] != 10 || used[QuotaGigabytes] != 30 {
				t.Errorf("usage %v, %v", used, err)
			}
		})
	}
}

// Whatever is added and removed, a project never exceeds its limits, never is
// refused what fits, and its usage is what its records say.
func TestQuotaModel(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			round := 0
			rapid.Check(t, func(t *rapid.T) {
				round++
				defaults := map[string]int64{QuotaBackups: 3, QuotaGigabytes: 10}
				limits := map[string]map[string]int64{}
				have := map[string]map[string]int64{} // project -> ID -> GiB
				for _, p := range []string{"a", "b"} {
					p = fmt.Sprint(p, round)
					limits[p], have[p] = maps.Clone(defaults), map[string]int64{}
				}
				next := 0
				t.Repeat(map[string]func(*rapid.T){
					"add": func(t *rapid.T) {
						p := fmt.Sprint(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "project"), round)
						size := rapid.Int64Range(1, 6<<30).Draw(t, "size")
						more := (size + gib - 1) / gib
						next++
						id := fmt.Sprint(round, "-", next)
						err := c.AddBackup(t.Context(), Backup{ID: id, Project: p, Size: size, Status: rapid.SampledFrom([]Status{Creating, Failed}).Draw(t, "status")}, defaults)
						room := fits(limits[p][QuotaBackups], int64(len(have[p])), 1) && fits(limits[p][QuotaGigabytes], sum(have[p]), more)
						if _, full := errors.AsType[*QuotaError](err); full == room || err != nil && !full {
							t.Fatalf("%d GiB beside %v under %v: %v", more, have[p], limits[p], err)
						}
						if room {
							have[p][id] = more
						}
					},
					"remove": func(t *rapid.T) {
						p := fmt.Sprint(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "project"), round)
						for id := range have[p] {
							if err := c.RemoveBackup(t.Context(), id); err != nil {
								t.Fatal(err)
							}
							delete(have[p], id)
							return
						}
					},
					"limit": func(t *rapid.T) {
						p := fmt.Sprint(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "project"), round)
						if rapid.IntRange(0, 4).Draw(t, "reset") == 0 {
							if err := c.RemoveLimits(t.Context(), p); err != nil {
								t.Fatal(err)
							}
							limits[p] = maps.Clone(defaults)
							return
						}
						set := map[string]int64{rapid.SampledFrom([]string{QuotaBackups, QuotaGigabytes}).Draw(t, "resource"): rapid.Int64Range(-1, 12).Draw(t, "limit")}
						if err := c.SetLimits(t.Context(), p, set); err != nil {
							t.Fatal(err)
						}
						maps.Copy(limits[p], set)
					},
					"": func(t *rapid.T) {
						for p := range have {
							used, err := c.BackupUsage(t.Context(), p)
							if err != nil || used[QuotaBackups] != int64(len(have[p])) || used[QuotaGigabytes] != sum(have[p]) {
								t.Fatalf("usage %v, %v; there are %v", used, err, have[p])
							}
						}
					},
				})
			})
		})
	}
}

// fits says whether so many more fit.
func fits(limit, used, more int64) bool { return limit < 0 || used+more <= limit }

func sum(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}
