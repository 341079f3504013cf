package repository

import (
	"slices"
	"sync"
	"time"
)

// When a read asks other shards because one is late: after as long as reads of
// its size usually take, three times over. Most stores are healthy, so that the
// median says what is usual.
const (
	paceSamples = 64                    // the last so many answers are looked at
	paceEnough  = 8                     // so few say nothing yet
	paceTimes   = 3                     // times the median
	paceLeast   = 50 * time.Millisecond // a disk that is busy is not late
	paceUnknown = 300 * time.Millisecond
	paceSmall   = 128 << 10 // up to here a read is small

	// Late reads may cost other stores no more than a share of what is read at
	// all: where everything is slow, asking more makes it slower.
	paceShare = 1.0 / 20 // of the answers
	paceMost  = 8        // at once
)

// pace knows how long reads take lately. The zero value is ready for use.
type pace struct {
	mu     sync.Mutex
	kinds  [2]paceKind // small and large reads
	spent  float64     // of the reads that may be late; answers earn it back
	sorted [paceSamples]time.Duration
}

// paceKind are the last answers to reads of one kind.
type paceKind struct {
	took  [paceSamples]time.Duration
	n     int           // answers so far
	limit time.Duration // 0: to be computed
}

func (p *pace) kind(n int64) *paceKind {
	if n <= paceSmall {
		return &p.kinds[0]
	}
	return &p.kinds[1]
}

// note takes in that a read of n bytes was answered after d.
func (p *pace) note(n int64, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kind(n)
	k.took[k.n%paceSamples] = d
	k.n++
	if k.n%paceEnough == 0 {
		k.limit = 0
	}
	p.spent = max(p.spent-paceShare, 0)
}

// patience returns how long a read of n bytes is waited for before others are
// asked too; 0 = no others, for now.
func (p *pace) patience(n int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kind(n)
	switch {
	case p.spent > paceMost-1:
		return 0
	case k.n < paceEnough:
		return paceUnknown
	case k.limit == 0:
		some := p.sorted[:copy(p.sorted[:], k.took[:min(k.n, paceSamples)])]
		slices.Sort(some)
		k.limit = max(paceTimes*some[len(some)/2], paceLeast)
	}
	return k.limit
}

// spend takes in that others were asked.
func (p *pace) spend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spent++
}
