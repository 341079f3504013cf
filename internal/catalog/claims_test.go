package catalog

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestClaim(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
			must(
				t, c.OfferJob(ctx, Job{ID: "late", Created: at(3)}), c.OfferJob(ctx, Job{ID: "for b", Host: "b", Created: at(1)}), c.OfferJob(ctx, Job{ID: "any", Created: at(2)}),
				c.For("a").PutJob(ctx, Job{ID: "own", State: Queued, Created: at(0)}),
			)
			if l, err := c.For("b").UnfinishedJobs(ctx); err != nil || len(l) != 0 {
				t.Errorf("offered, and nobody's yet: %+v, %v", l, err)
			}
			j, ok, err := c.ClaimJob(ctx, "a")
			if err != nil || !ok || j.ID != "any" || j.State != Running || j.Host != "a" || j.Owner != "a" || time.Since(j.Started).Abs() > time.Minute {
				t.Fatalf("%+v, %v, %v", j, ok, err)
			}
			if got, gerr := c.Job(ctx, "any"); gerr != nil || got.Started != j.Started || got.Host != "a" {
				t.Errorf("%+v, %v", got, gerr)
			}
			if err = c.WithdrawJob(ctx, "any", "x"); !errors.Is(err, ErrNotFound) {
				t.Errorf("withdrawn, but claimed: %v", err)
			}
			must(t, c.WithdrawJob(ctx, "late", "not needed"))
			if got, gerr := c.Job(ctx, "late"); gerr != nil || got.State != Canceled || got.Error != "not needed" || got.Finished.IsZero() {
				t.Errorf("%+v, %v", got, gerr)
			}
			if j, ok, err = c.ClaimJob(ctx, "a"); err != nil || ok {
				t.Errorf("another's job: %+v, %v", j, err)
			}
			if j, ok, err = c.ClaimJob(ctx, "b"); err != nil || !ok || j.ID != "for b" {
				t.Errorf("%+v, %v, %v", j, ok, err)
			}
			// Its agent goes on with the record.
			j.State, j.Finished = Succeeded, at(9)
			must(t, c.For("b").PutJob(ctx, j))
			if l, uerr := c.For("b").UnfinishedJobs(ctx); uerr != nil || len(l) != 0 {
				t.Errorf("%+v, %v", l, uerr)
			}
		})
	}
}

// Whoever claims, offers and withdraws at once: each job is claimed once or withdrawn,
// by a host that may have it, and none is lost.
func TestClaimAtOnce(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			all := agents(t, place(t))
			c := all[0]
			round := 0
			rapid.Check(t, func(t *rapid.T) {
				round++
				hosts := []string{fmt.Sprint("a", round), fmt.Sprint("b", round)}
				n := rapid.IntRange(1, 25).Draw(t, "jobs")
				first := rapid.IntRange(0, n).Draw(t, "offered before")
				claimers := rapid.IntRange(1, 6).Draw(t, "claimers")
				withdraw := rapid.SliceOfDistinct(rapid.IntRange(0, n-1), rapid.ID).Draw(t, "withdrawn")
				whose := make(map[string]string, n)
				jobs := make([]Job, n)
				for i := range jobs {
					jobs[i] = Job{ID: fmt.Sprintf("%d-%d", round, i), Host: rapid.SampledFrom(append([]string{""}, hosts...)).Draw(t, "host"), Created: time.Unix(int64(i), 0)}
					whose[jobs[i].ID] = jobs[i].Host
				}
				var mu sync.Mutex
				var errs []error
				got := map[string][]string{} // job -> who has it
				note := func(id, who string, err error) {
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						errs = append(errs, err)
					} else if id != "" {
						got[id] = append(got[id], who)
					}
				}
				for _, j := range jobs[:first] {
					note("", "", c.OfferJob(t.Context(), j))
				}
				var offers, wg sync.WaitGroup
				offers.Go(func() {
					for _, j := range jobs[first:] {
						note("", "", c.OfferJob(t.Context(), j))
					}
				})
				offered := make(chan struct{})
				go func() { offers.Wait(); close(offered) }()
				for i := range claimers {
					host := hosts[i%2]
					wg.Go(func() {
						for {
							last := false
							select {
							case <-offered:
								last = true
							default:
							}
							j, ok, err := all[i%len(all)].ClaimJob(t.Context(), host)
							if err == nil && ok && j.Host != host {
								err = fmt.Errorf("job %s given to %s is of %s", j.ID, host, j.Host)
							}
							note(j.ID, host, err)
							if err != nil || !ok && last {
								return
							}
						}
					})
				}
				wg.Go(func() {
					for _, i := range withdraw {
						if err := c.WithdrawJob(t.Context(), jobs[i].ID, ""); !errors.Is(err, ErrNotFound) {
							note(jobs[i].ID, "withdrawn", err)
						}
					}
				})
				wg.Wait()
				<-offered
				// What was skipped while another looked at it, and what is of a host without a claimer.
				for _, host := range hosts {
					for {
						j, ok, err := c.ClaimJob(t.Context(), host)
						note(j.ID, host, err)
						if err != nil || !ok {
							break
						}
					}
				}
				if len(errs) > 0 {
					t.Fatal(errors.Join(errs...))
				}
				for id, host := range whose {
					who := got[id]
					if len(who) != 1 || who[0] != "withdrawn" && host != "" && who[0] != host {
						t.Fatalf("job %s for %q: %v", id, host, who)
					}
					j, err := c.Job(t.Context(), id)
					if err != nil || (j.State == Canceled) != (who[0] == "withdrawn") || j.State != Canceled && (j.State != Running || j.Host != who[0]) {
						t.Fatalf("%v: %+v, %v", who, j, err)
					}
				}
				for _, host := range hosts {
					l, err := c.For(host).UnfinishedJobs(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					for _, j := range l {
						if !slices.Contains(got[j.ID], host) {
							t.Fatalf("%s has %s: %v", host, j.ID, got[j.ID])
						}
					}
				}
			})
		})
	}
}
