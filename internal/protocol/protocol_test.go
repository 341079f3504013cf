package protocol

import (
	"os"
	"strings"
	"testing"
)

// limit is how many states a test visits.
func limit(t *testing.T) int {
	t.Helper()
	if os.Getenv("CAIRN_ROUNDS") != "" {
		return 40_000_000
	}
	return 3_000_000
}

// single is one bucket that is durable by itself.
func single(start Start, prunes int, writers ...Kind) Config {
	return Config{Stores: 1, DataShards: 1, PackQuorum: 1, WriteQuorum: 1, PruneQuorum: 1, Writers: writers, Prunes: prunes, Start: start}
}

// several are n stores with k data shards, of which packs need k+d and control
// objects 1+d; a prune needs all.
func several(n, k, d, losses, prunes int, writers ...Kind) Config {
	return Config{
		Stores: n, DataShards: k, PackQuorum: min(k+d, n), WriteQuorum: 1 + d, PruneQuorum: n, Losses: losses,
		Writers: writers, Prunes: prunes, Start: Aged,
	}
}

func (c Config) late(n int) Config         { c.LatePuts = n; return c }
func (c Config) mutated(m Mutation) Config { c.Mutation = m; return c }
func (c Config) resynced() Config          { c.Resync = true; return c }
func (c Config) prunedBy(q int) Config     { c.PruneQuorum = q; return c }

// Every order of the steps of these writers and prunes keeps the invariants.
// Those that are long are cut off unless CAIRN_ROUNDS is set.
func TestProtocol(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		long bool
	}{
		{"one store, incremental, index, two prunes, delete", single(Live, 2, Incremental, Indexed), true},
		{"one store, incremental, two prunes, delete", single(Live, 2, Incremental), false},
		{"one store, aged, incremental, index, two prunes", single(Aged, 2, Incremental, Indexed), true},
		{"one store, purged, stale index, two prunes", single(Purged, 2, Indexed), false},
		{"one store, purged, incremental, stale index, two prunes", single(Purged, 2, Incremental, Indexed), true},
		{"one store, incremental, index, undelete", single(Aged, 1, Incremental, Indexed, Undelete), false},
		{"one store, incremental, undelete, two prunes", single(Aged, 2, Incremental, Undelete), true},
		{"one store, undelete, two prunes", single(Aged, 2, Undelete), false},
		{"one store, two late puts", single(Aged, 1, Incremental, Indexed).late(2), false},
		{"one store, a late put, two prunes", single(Aged, 2, Incremental).late(1), false},
		{"one store, repair, late put", single(Aged, 1, Repair, Incremental).late(1), false},
		{"1+1, d=0", several(2, 1, 0, 0, 1, Incremental), false},
		{"1+1, d=0, two prunes", several(2, 1, 0, 0, 2, Incremental), true},
		{"1+1, d=1, one loss", several(2, 1, 1, 1, 1, Incremental), false},
		{"2+1, d=0", several(3, 2, 0, 0, 1, Incremental), false},
		{"2+1, d=1, one loss", several(3, 2, 1, 1, 1, Incremental), false},
		{"2+1, d=0, repair", several(3, 2, 0, 0, 1, Repair), false},
		{"2+1, d=1, two losses, a resync between", several(3, 2, 1, 2, 1, Incremental).resynced(), true},
		{"2+2, d=1, one loss", several(4, 2, 1, 1, 1, Incremental), true},
		{"2+2, d=2, two losses", several(4, 2, 2, 2, 1, Incremental), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.long && testing.Short() {
				t.Skip("long: see make model")
			}
			r := Explore(tt.c, limit(t))
			if r.Violation != "" {
				t.Fatalf("%v\n%s", r, strings.Join(r.Trace, "\n"))
			}
			if r.Truncated && !tt.long {
				t.Errorf("%v: it is marked as one that is visited whole", r)
			}
			t.Log(r)
		})
	}
}

// Each rule that is left out must be seen to be missed: else it would not be
// needed, or the model would not see why.
func TestMutations(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
		want string // what the violation says
	}{
		{"W2 before W1", single(Aged, 1, Incremental).mutated(ListBeforeOpen), "I1"},
		{"no second listing of roots", single(Aged, 1, Incremental).mutated(NoSecondListing), "I1"},
		{"the index outlives lists that it missed", single(Purged, 2, Indexed).mutated(ClosedIgnored), "I1"},
		{"no wait", single(Aged, 1, Incremental).mutated(NoWait), "I1"},
		{"lists of prunes that seem dead are removed", single(Aged, 1, Incremental).mutated(DeadListRemoved), "I1"},
		{"no aging", single(Live, 2, Incremental).mutated(NoAging), "I2"},
		{"no purged mark, late put", single(Aged, 1, Incremental).late(1).mutated(NoPurgeMark), "I6"},
		{"an undeletion takes the tombstone away", single(Live, 2, Incremental).mutated(UndeleteInPlace), "I"},
		{"412 is failed", single(Aged, 1, Incremental).mutated(RefusedIsFailed), "I3"},
		{"a prune of n-1 stores, W = 1", several(2, 1, 0, 0, 1, Incremental).prunedBy(1), "I"},
		{"W = 1 with one loss", several(2, 1, 0, 1, 1, Incremental), "I"},
		{"votes of new stores count", several(3, 1, 1, 1, 1, Incremental).mutated(NewStoreVotes), "I"},
		{"votes from before a replacement count", several(3, 1, 1, 2, 1, Incremental).resynced().mutated(StaleVotes), "I"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Explore(tt.c, 20_000_000)
			if r.Violation == "" || !strings.Contains(r.Violation, tt.want) {
				t.Fatalf("%v: not found to be unsafe", r)
			}
			t.Logf("%v\n%s", r, strings.Join(r.Trace, "\n"))
		})
	}
}
