package catalog

import (
	"errors"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestHosts(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			where := place(t)
			c := openTest(t, where)
			ctx := t.Context()
			// ago makes a host's last beat older.
			ago := func(name string, d time.Duration) {
				t.Helper()
				must(t, c.one(ctx, "age", `UPDATE hosts SET beat = beat - ? WHERE name = ?`, int64(d), name))
			}
			up := func() map[string]bool {
				t.Helper()
				l, err := c.Hosts(ctx)
				if err != nil {
					t.Fatal(err)
				}
				m := map[string]bool{}
				for _, h := range l {
					m[h.Name] = h.Up
				}
				return m
			}
			a, b := Host{Name: "a", ID: "1", Version: "v1", Address: "https://a"}, Host{Name: "b", ID: "2", Version: "v2", Address: "https://b"}
			before := time.Now()
			must(t, c.BeatHost(ctx, b), c.BeatHost(ctx, a))
			l, err := c.Hosts(ctx)
			if err != nil || len(l) != 2 {
				t.Fatalf("%+v, %v", l, err)
			}
			// The database's clock is this machine's here.
			if d := l[0].Beat.Sub(before); d < -time.Second || d > 10*time.Second {
				t.Errorf("beat %v after it was sent", d)
			}
			a.Beat, a.Up = l[0].Beat, true
			if !reflect.DeepEqual(l[0], a) || l[1].Name != "b" {
				t.Errorf("%+v", l)
			}
			// Another agent under the name.
			if berr := c.BeatHost(ctx, Host{Name: "a", ID: "3"}); !errors.Is(berr, ErrHostTaken) {
				t.Errorf("taken over while up: %v", berr)
			}
			ago("a", DownAfter-5*time.Second)
			if m := up(); !m["a"] || !m["b"] {
				t.Errorf("a little late: %v", m)
			}
			ago("a", 6*time.Second)
			if m := up(); m["a"] || !m["b"] {
				t.Errorf("late: %v", m)
			}
			must(t, c.BeatHost(ctx, Host{Name: "a", ID: "1", Version: "v3"}), c.DisableHost(ctx, "a", "its disk fails"), c.BeatHost(ctx, Host{Name: "a", ID: "1", Version: "v4"}))
			c = reopen(t, c, where)
			if l, err = c.Hosts(ctx); err != nil || !l[0].Up || l[0].Version != "v4" || l[0].Disabled != "its disk fails" {
				t.Errorf("back: %+v, %v", l, err)
			}
			must(t, c.DisableHost(ctx, "a", ""))
			ago("a", DownAfter)
			must(t, c.BeatHost(ctx, Host{Name: "a", ID: "3"}))
			if err = c.ForgetHost(ctx, "a"); !errors.Is(err, ErrHostUp) {
				t.Errorf("forget one that is up: %v", err)
			}
			ago("a", DownAfter)
			must(t, c.ForgetHost(ctx, "a"))
			for _, err := range []error{c.ForgetHost(ctx, "a"), c.DisableHost(ctx, "a", "x")} {
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("one that is not there: %v", err)
				}
			}
			if m := up(); len(m) != 1 || !m["b"] {
				t.Errorf("%v", m)
			}
		})
	}
}

// Of several agents under one name one beats, and the others are told.
func TestHostOnce(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			won := make(chan string, 12)
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					id := strconv.Itoa(i)
					switch err := c.BeatHost(t.Context(), Host{Name: "h", ID: id}); {
					case err == nil:
						won <- id
					case !errors.Is(err, ErrHostTaken):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if l, err := c.Hosts(t.Context()); err != nil || len(won) != 1 || len(l) != 1 || l[0].ID != <-won {
				t.Errorf("%d won; %+v, %v", len(won), l, err)
			}
		})
	}
}
