package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// What only the host of a volume can do, the agent that is asked for it has done there,
// by a call through the catalog. Whoever can write to the catalog can call.

// callPatience is how long a host that is up may take to claim a call. It is a variable for
// tests.
var callPatience = 20 * time.Second

const (
	callsAtOnce = 8 // that a host works on; others wait
	listenAgain = 5 * time.Second
	lookAgain   = time.Second // for calls and answers of which nothing was heard
)

// remote is something that one agent does for another: the same as it does for itself.
type remote[Q, A any] struct {
	name string
	do   func(b *blockStorage, ctx context.Context, q Q) (A, error)
}

// servedCall is a remote as a host is asked for it.
type servedCall func(b *blockStorage, ctx context.Context, request json.RawMessage) (any, error)

func (r remote[Q, A]) serve() (string, servedCall) {
	return r.name, func(b *blockStorage, ctx context.Context, request json.RawMessage) (any, error) {
		var q Q
		if err := json.Unmarshal(request, &q); err != nil {
			return nil, fmt.Errorf("call %s: %w", r.name, err)
		}
		return r.do(b, ctx, q)
	}
}

// asked is what a call is for.
type asked struct {
	RequestID string          `json:"request_id,omitempty"` // of the API
	Ask       json.RawMessage `json:"ask"`
}

// called is the answer to a call.
type called struct {
	Result json.RawMessage  `json:"result,omitempty"`
	Fault  *cinderapi.Fault `json:"fault,omitempty"`
	Failed bool             `json:"failed,omitempty"` // by what is the host's own business, and in its log
}

// at does it at a host.
func (r remote[Q, A]) at(ctx context.Context, b *blockStorage, host string, q Q) (a A, err error) {
	if host == b.host {
		a, err = r.do(b, ctx, q)
		b.hub.told.poke()
		return a, err
	}
	ask, err := json.Marshal(q)
	if err != nil {
		return a, fmt.Errorf("call %s: %w", r.name, err)
	}
	request, err := json.Marshal(asked{cinderapi.RequestID(ctx), ask})
	if err != nil {
		return a, fmt.Errorf("call %s: %w", r.name, err)
	}
	data, err := b.call(ctx, catalog.Call{ID: uuid.NewString(), Host: host, Method: r.name, Request: request})
	if err != nil {
		return a, err
	}
	var got called
	if err := json.Unmarshal(data, &got); err != nil {
		return a, fmt.Errorf("answer of host %s to %s: %w", host, r.name, err)
	}
	switch {
	case got.Fault != nil:
		return a, got.Fault
	case got.Failed:
		return a, fmt.Errorf("host %s failed at %s: its log says why", host, r.name)
	}
	if err := json.Unmarshal(got.Result, &a); err != nil {
		return a, fmt.Errorf("answer of host %s to %s: %w", host, r.name, err)
	}
	return a, nil
}

// call has a call answered, or taken back: one that was neither may have been done.
func (s *server) call(ctx context.Context, x catalog.Call) (json.RawMessage, error) {
	if err := s.upHost(ctx, x.Host); err != nil {
		return nil, err
	}
	if err := s.cat.OfferCall(ctx, x, callPatience); err != nil {
		if back, berr := s.takeBack(ctx, x); !back { // it may be there, and may be claimed
			return nil, errors.Join(notKnown(), err, berr)
		}
		return nil, err
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	offered := time.Now()
	claimed := false
	for {
		heard := s.hub.heard.next()
		answer, err := s.cat.TakeAnswer(ctx, x.ID)
		if err == nil && answer != nil {
			return answer, nil
		}
		if err != nil && !errors.Is(err, catalog.ErrUnavailable) && ctx.Err() == nil {
			return nil, errors.Join(notKnown(), err)
		}
		if !claimed && (time.Since(offered) > callPatience || ctx.Err() != nil) {
			back, berr := s.takeBack(ctx, x)
			switch {
			case berr != nil:
				return nil, errors.Join(notKnown(), berr)
			case back:
				s.log.LogAttrs(ctx, slog.LevelWarn, "host does not take calls", slog.String("host", x.Host), slog.String("method", x.Method))
				return nil, hostDown()
			}
			claimed = true
		}
		if claimed && isUnavailable(s.upHost(ctx, x.Host)) {
			return nil, notKnown()
		}
		select {
		case <-heard:
		case <-tick.C:
		case <-ctx.Done():
			if !claimed {
				continue
			}
			return nil, notKnown()
		}
	}
}

// takeBack takes a call back, unless somebody has claimed it.
func (s *server) takeBack(ctx context.Context, x catalog.Call) (back bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	err = s.cat.WithdrawCall(ctx, x.ID)
	if errors.Is(err, catalog.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// notKnown is the answer when a host has a call, or may have it, and no answer came.
func notKnown() error {
	return cinderapi.Unavailable("The volume's host has the request and did not answer in time: look whether it was done before trying again.")
}

// hostDown is the answer for what is at a host that does not answer. Which that is, is the
// operator's business.
func hostDown() error {
	return cinderapi.Unavailable("Service cinder-volume could not be found: the volume's host does not answer, try again later.")
}

// upHost refuses a host that is down.
func (s *server) upHost(ctx context.Context, name string) error {
	hosts, err := s.cat.Hosts(ctx)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if h.Name == name && h.Up {
			return nil
		}
	}
	return hostDown()
}

// keepListening rings the bell when this host is called or answered, until ctx ends.
func (s *server) keepListening(ctx context.Context) {
	for {
		err := s.cat.Listen(ctx, s.hub.heard.ring)
		if ctx.Err() != nil {
			return
		}
		s.log.LogAttrs(ctx, slog.LevelDebug, "calls of other hosts are looked for only now and then", slog.Any("error", err))
		if !pause(ctx, listenAgain) {
			return
		}
	}
}

// answerCalls does what other hosts ask for, until ctx ends and all of it is done.
func (s *server) answerCalls(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, callsAtOnce)
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		heard := s.hub.heard.next()
		for more := true; more; {
			select {
			case slots <- struct{}{}: // it is claimed only when it can begin
			case <-ctx.Done():
				return
			}
			x, ok, err := s.cat.ClaimCall(ctx)
			if more = ok && err == nil; more {
				group.Go(func() {
					defer func() { <-slots }()
					s.answer(ctx, x)
				})
				continue
			}
			<-slots
			if err != nil && ctx.Err() == nil {
				s.log.LogAttrs(ctx, slog.LevelDebug, "calls not read", slog.Any("error", err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-heard:
		case <-tick.C:
		}
	}
}

// answer does one call and answers it. An agent that stops lets it go on for as long as
// requests of the API.
func (s *server) answer(ctx context.Context, x catalog.Call) {
	log := s.log.With(slog.String("call", x.ID), slog.String("method", x.Method), slog.String("from", x.From))
	var q asked
	if json.Unmarshal(x.Request, &q) == nil && q.RequestID != "" {
		ctx = cinderapi.WithRequestID(ctx, q.RequestID)
	}
	work, end := context.WithTimeout(context.WithoutCancel(ctx), apiWorkTimeout)
	defer end()
	defer context.AfterFunc(ctx, func() {
		if pause(work, stopTimeout) {
			end()
		}
	})()
	got := s.answerOf(work, x.Method, q.Ask, log)
	last, cancel := context.WithTimeout(context.WithoutCancel(work), cleanTimeout)
	defer cancel()
	// Whoever is answered may look at what all hosts have.
	if err := s.tellVolumes(last); err != nil {
		log.LogAttrs(last, slog.LevelWarn, "volumes not told to the catalog yet", slog.Any("error", err))
	}
	data, err := json.Marshal(got)
	for err == nil { // it is done: whoever waits shall not have to guess
		if err = s.cat.AnswerCall(last, x, data); !errors.Is(err, catalog.ErrUnavailable) || !pause(last, lookAgain) {
			break
		}
		err = nil
	}
	log.LogAttrs(last, slog.LevelInfo, "call of another host", slog.Bool("refused", got.Result == nil), slog.Any("error", err))
}

func (s *server) answerOf(ctx context.Context, method string, ask json.RawMessage, log *slog.Logger) (got called) {
	defer func() {
		if p := recover(); p != nil { // as of a request of HTTP: it ends the call, and not the agent
			log.LogAttrs(ctx, slog.LevelError, "panic in a call", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			got = called{Failed: true}
		}
	}()
	do, ok := servedCalls[method]
	if !ok || ask == nil {
		log.LogAttrs(ctx, slog.LevelError, "a call that is not known: the agents are of different versions")
		return called{Fault: cinderapi.Unavailable("Service cinder-volume could not be found: the volume's host is of another version.")}
	}
	result, err := do(s.hub.blockStorage(), ctx, ask)
	if err == nil {
		var data []byte
		if data, err = json.Marshal(result); err == nil {
			return called{Result: data}
		}
	}
	if f, ok := errors.AsType[*cinderapi.Fault](explain(fault(err, ""))); ok {
		return called{Fault: f}
	}
	log.LogAttrs(ctx, slog.LevelError, "call failed", slog.Any("error", err))
	return called{Failed: true}
}
