package volume

import "sync"

// syncer shares one fsync among all who wait for one (group commit).
type syncer struct {
	sync func() error

	mu      sync.Mutex
	done    sync.Cond
	started uint64 // fsyncs begun
	ended   uint64 // fsyncs finished
	running bool
	err     error // of the last finished fsync that failed; never cleared
}

func (s *syncer) init(f func() error) {
	s.sync = f
	s.done.L = &s.mu
}

// wait returns when an fsync that began after the call has ended: everything
// written before the call is durable then. The first failure is the answer of
// all later calls, because the kernel reports a lost write once only.
func (s *syncer) wait() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for need := s.started + 1; s.ended < need && s.err == nil; {
		if s.running {
			s.done.Wait()
			continue
		}
		s.running = true
		s.started++
		s.mu.Unlock()
		err := s.sync()
		s.mu.Lock()
		s.running = false
		s.ended++
		if err != nil && s.err == nil {
			s.err = err
		}
		s.done.Broadcast()
	}
	return s.err
}
