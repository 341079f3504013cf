package pgtest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Kill ends the server and all its processes at once; what it has written stays.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	if err := s.kill(); err != nil {
		tb.Errorf("kill PostgreSQL: %v", err)
	}
}

func (s *Server) kill() error {
	if s.cmd == nil {
		return nil
	}
	p := s.cmd.Process
	s.cmd = nil
	// Stopped first, so that it makes no child that is not seen.
	if err := p.Signal(syscall.SIGSTOP); errors.Is(err, os.ErrProcessDone) {
		return nil
	} else if err != nil {
		return err
	}
	children := childrenOf(p.Pid)
	for _, pid := range children {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.ended
	// A child holds the memory that a new server wants for itself until it is gone.
	deadline := time.Now().Add(20 * time.Second)
	for _, pid := range children {
		for alive(pid) {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d is still there", pid)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	return nil
}

// childrenOf lists the children of a process: the server's backends.
func childrenOf(parent int) []int {
	entries, _ := os.ReadDir("/proc")
	var l []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if state, ppid := status(pid); ppid == parent && state != "Z" {
			l = append(l, pid)
		}
	}
	return l
}

func alive(pid int) bool {
	state, _ := status(pid)
	return state != "" && state != "Z"
}

// status returns the state and the parent of a process: "" when it is gone.
func status(pid int) (state string, parent int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// PID (NAME) STATE PARENT …, and the name may have anything in it.
	_, rest, _ := strings.Cut(string(text[strings.LastIndex(string(text), ")")+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(f[1])
	return f[0], parent
}

// remove ends the server for good, and what it kept.
func (s *Server) remove() error {
	var err error
	if s.cmd != nil {
		// An immediate shutdown gives back what it has of the system's shared memory.
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-s.ended:
			s.cmd = nil
		case <-time.After(10 * time.Second):
			err = s.kill()
		}
	}
	if s.log != nil {
		err = errors.Join(err, s.log.Close())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
