package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestCalls(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			a, b := c.For("a"), c.For("b")
			must(
				t, a.OfferCall(ctx, Call{ID: "1", Host: "b", Method: "m", Request: json.RawMessage(`{"x":1}`)}, time.Minute),
				a.OfferCall(ctx, Call{ID: "2", Host: "b"}, 2*time.Minute), a.OfferCall(ctx, Call{ID: "late", Host: "b"}, -time.Second), a.OfferCall(ctx, Call{ID: "old", Host: "b"}, -2*keepCalls),
			)
			if x, ok, err := a.ClaimCall(ctx); err != nil || ok {
				t.Errorf("another's call: %+v, %v", x, err)
			}
			x, ok, err := b.ClaimCall(ctx)
			if err != nil || !ok || x.ID != "1" || x.From != "a" || x.Method != "m" || string(x.Request) != `{"x":1}` {
				t.Fatalf("%+v, %v, %v", x, ok, err)
			}
			if err = a.WithdrawCall(ctx, "1"); !errors.Is(err, ErrNotFound) {
				t.Errorf("withdrawn, but claimed: %v", err)
			}
			must(t, a.WithdrawCall(ctx, "2"))
			if y, more, cerr := b.ClaimCall(ctx); cerr != nil || more {
				t.Errorf("withdrawn, or too late: %+v, %v", y, cerr)
			}
			if got, aerr := a.TakeAnswer(ctx, "1"); aerr != nil || got != nil {
				t.Errorf("not answered yet: %s, %v", got, aerr)
			}
			must(t, b.AnswerCall(ctx, x, json.RawMessage(`"done"`)))
			if err = b.AnswerCall(ctx, x, json.RawMessage(`"twice"`)); !errors.Is(err, ErrNotFound) {
				t.Errorf("answered twice: %v", err)
			}
			if got, aerr := a.TakeAnswer(ctx, "1"); aerr != nil || string(got) != `"done"` {
				t.Errorf("%s, %v", got, aerr)
			}
			if err = b.AnswerCall(ctx, x, nil); !errors.Is(err, ErrNotFound) {
				t.Errorf("nobody waits for it: %v", err)
			}
			must(t, a.OfferCall(ctx, Call{ID: "3", Host: "b"}, time.Minute)) // forgets what is old
			if err = a.one(ctx, "look", `UPDATE calls SET state = state WHERE id = ?`, "old"); !errors.Is(err, ErrNotFound) {
				t.Errorf("the old call is there: %v", err)
			}
		})
	}
}

// TestListen: who listens hears its own calls and answers; its connection goes back unused
// by anybody.
func TestListen(t *testing.T) {
	c := openTest(t, databases["postgres"](t))
	heard := make(chan struct{}, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.For("b").Listen(ctx, func() { heard <- struct{}{} }) }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-heard:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s was not heard", what)
		}
	}
	wait("the beginning")
	must(t, c.For("a").OfferCall(ctx, Call{ID: "other", Host: "c"}, time.Minute), c.For("a").OfferCall(ctx, Call{ID: "1", Host: "b"}, time.Minute))
	wait("a call")
	must(t, c.For("b").OfferCall(ctx, Call{ID: "2", Host: "a"}, time.Minute))
	x, _, err := c.For("a").ClaimCall(ctx)
	must(t, err, c.For("a").AnswerCall(ctx, x, json.RawMessage(`1`)))
	wait("an answer")
	if len(heard) != 0 {
		t.Error("a call of another host was heard")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
	for range 2 * pgConnections { // no connection is in the middle of a message
		must(t, c.SetSetting(t.Context(), "k", "v"))
	}
}

// Whoever offers, claims and withdraws at once: each call is claimed once, by its host,
// or withdrawn, and none is lost.
func TestCallsAtOnce(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			all := agents(t, place(t))
			round := 0
			rapid.Check(t, func(t *rapid.T) {
				round++
				hosts := []string{fmt.Sprint("a", round), fmt.Sprint("b", round)}
				n := rapid.IntRange(1, 25).Draw(t, "calls")
				claimers := rapid.IntRange(2, 6).Draw(t, "claimers")
				withdraw := rapid.SliceOfDistinct(rapid.IntRange(0, n-1), rapid.ID).Draw(t, "withdrawn")
				calls := make([]Call, n)
				whose := map[string]string{}
				for i := range calls {
					calls[i] = Call{ID: fmt.Sprintf("%d-%d", round, i), Host: rapid.SampledFrom(hosts).Draw(t, "host")}
					whose[calls[i].ID] = calls[i].Host
				}
				var mu sync.Mutex
				var errs []error
				got := map[string][]string{} // call -> who has it
				note := func(id, who string, err error) {
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						errs = append(errs, err)
					} else if id != "" {
						got[id] = append(got[id], who)
					}
				}
				var offers, wg sync.WaitGroup
				offers.Go(func() {
					for _, x := range calls {
						note("", "", all[0].OfferCall(t.Context(), x, time.Minute))
					}
				})
				offered := make(chan struct{})
				go func() { offers.Wait(); close(offered) }()
				claim := func(c *Catalog, host string) (bool, error) {
					x, ok, err := c.For(host).ClaimCall(t.Context())
					if err == nil && ok && x.Host != host {
						err = fmt.Errorf("call %s given to %s is for %s", x.ID, host, x.Host)
					}
					note(x.ID, host, err)
					return ok, err
				}
				for i := range claimers {
					wg.Go(func() {
						for {
							last := false
							select {
							case <-offered:
								last = true
							default:
							}
							if ok, err := claim(all[i%len(all)], hosts[i%2]); err != nil || !ok && last {
								return
							}
						}
					})
				}
				wg.Go(func() {
					for _, i := range withdraw {
						if err := all[0].WithdrawCall(t.Context(), calls[i].ID); !errors.Is(err, ErrNotFound) {
							note(calls[i].ID, "withdrawn", err)
						}
					}
				})
				wg.Wait()
				<-offered
				for _, host := range hosts { // what was skipped while another looked at it
					for {
						if ok, err := claim(all[0], host); err != nil || !ok {
							break
						}
					}
				}
				if len(errs) > 0 {
					t.Fatal(errors.Join(errs...))
				}
				for id, host := range whose {
					if who := got[id]; len(who) != 1 || who[0] != "withdrawn" && who[0] != host {
						t.Fatalf("call %s for %q: %v", id, host, who)
					}
				}
			})
		})
	}
}
