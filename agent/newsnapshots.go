package agent

import (
	"context"
	"errors"
)

// newSnapshots is the body of a request for snapshots.
type newSnapshots struct {
	CreateSnapshots

	Quiesce bool `json:"quiesce,omitempty"` // each of the volumes, as it says
}

func (s *server) createSnapshots(ctx context.Context, r request) (any, error) {
	var req newSnapshots
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if req.Name != "" {
		if err := checkName("a snapshot", req.Name); err != nil {
			return nil, err
		}
	}
	if err := s.pairable(ctx, req.CreateSnapshots); err != nil {
		return nil, err
	}
	var volumes []Volume
	for _, ref := range req.Volumes {
		// One that there is not is refused by the data plane.
		v, err := s.serve.Volume(ctx, ref)
		if err != nil {
			continue
		}
		if req.Quiesce && QuiesceOf(v).Empty() {
			return nil, refuse(CodeInvalid, "volume %s has nothing to be quiesced by: say how with cairn volume quiesce", v.Name)
		}
		req.Fresh = req.Fresh || s.freshly(ctx, v.ID)
		volumes = append(volumes, v)
	}
	if !req.Quiesce {
		return list(s.serve.CreateSnapshots(ctx, req.CreateSnapshots, nil))
	}
	return list(s.quiescedSnapshots(ctx, req.CreateSnapshots, volumes))
}

// quiescedSnapshots makes snapshots while their volumes stand still, and notes of each that
// it is such a one: a snapshot of which that cannot be noted does not stay. Where standing
// still was only to be tried, the answer says what came of it.
func (s *server) quiescedSnapshots(ctx context.Context, req CreateSnapshots, volumes []Volume) ([]Snapshot, error) {
	still := s.hub.quiescing(volumes...)
	req.Force = true
	l, err := s.serve.CreateSnapshots(ctx, req, still.around())
	for i := range l {
		l[i].Caveat = joinSentences(l[i].Caveat, still.warning())
	}
	if err != nil || !still.done() {
		return l, err
	}
	clean := context.WithoutCancel(ctx)
	for _, x := range l {
		_, nerr := s.note(clean, x.VolumeID, func(n *volumeNotes) { n.noteSnapshot(x.ID, snapshotNotes{Quiesced: true}) })
		err = errors.Join(err, nerr)
	}
	if err == nil {
		return l, nil
	}
	for _, x := range l {
		err = errors.Join(err, s.serve.DeleteSnapshot(clean, x.ID))
	}
	return nil, err
}

func (n *volumeNotes) noteSnapshot(id string, x snapshotNotes) {
	if n.Snapshots == nil {
		n.Snapshots = map[string]snapshotNotes{}
	}
	n.Snapshots[id] = x
}
