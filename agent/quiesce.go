package agent

import (
	"context"
	"path/filepath"
	"time"

	"github.com/cairnbackup/cairn/internal/source"
)

// Quiesce says how whoever writes to a volume is made to stand still, with all written that
// is to be, for the instant of each snapshot that a backup reads. At most one of Agent and
// Command is set; without either nothing is done.
type Quiesce struct {
	Agent   string `json:"agent,omitempty"`   // absolute path of the socket of the guest's QEMU guest agent
	Command string `json:"command,omitempty"` // absolute path of a program, which is called with "freeze" or "thaw" and the volume's name
	Try     bool   `json:"try,omitempty"`     // where that fails the backup is made without, and says so
}

// Empty reports whether nothing is done.
func (q Quiesce) Empty() bool { return q.Agent == "" && q.Command == "" }

// check refuses what cannot be meant, for a volume.
func (q Quiesce) check(v Volume) error {
	for _, path := range []string{q.Agent, q.Command} {
		if path != "" && !filepath.IsAbs(path) {
			return refuse(CodeInvalid, "the path %q is not absolute: the agent does not know the folder you are in", path)
		}
	}
	switch {
	case q.Agent != "" && q.Command != "":
		return refuse(CodeInvalid, "a volume is quiesced by a guest agent or by a command: name one of them")
	case q.Empty() && q.Try:
		return refuse(CodeInvalid, "there is nothing to be tried: name the socket of the guest agent, or a command")
	case q.Empty():
		return nil
	}
	return source.Refuse(v, source.Quiesce)
}

// QuiesceOf is how a volume is quiesced.
func QuiesceOf(v Volume) Quiesce {
	if n := notesOf(v); n.Quiesce != nil {
		return *n.Quiesce
	}
	return Quiesce{}
}

// setQuiesce says how a volume is quiesced. It comes over the agent's own socket only: what
// uses the Block Storage API must not name programs.
func (s *server) setQuiesce(ctx context.Context, r request) (any, error) {
	var q Quiesce
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	if err = q.check(v); err != nil {
		return nil, err
	}
	return s.note(ctx, v.ID, func(n *volumeNotes) {
		n.quiesce(q)
		n.Updated = time.Now().UTC()
	})
}

func (n *volumeNotes) quiesce(q Quiesce) {
	n.Quiesce = nil
	if !q.Empty() {
		n.Quiesce = &q
	}
}
