package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// A medium that several hosts reach may be a volume, under one ID, at each of them. None
// of their trackers knows what the others write. So with each checkpoint the agent records
// what the other hosts say of the volume: how often they opened it for writing (the
// epoch), and whether it is open. An incremental starts from a checkpoint only if they say
// the same now, and nobody has it open: it was not written to in between. What is not
// known is a difference.

// sight is a volume as another host has it. Two that are the same, and settled, mean that
// the host has not written in between: see [serve.Volume].
type sight struct {
	Epoch   uint64 `json:"epoch"`
	Mark    string `json:"mark"` // tells the volume from one made later, with the same ID
	Open    bool   `json:"open,omitempty"`
	Unknown bool   `json:"unknown,omitempty"`
}

type sights map[string]sight // by host

type askID struct{ ID string }

var remoteSight = remote[askID, sight]{"volume.sight", func(b *blockStorage, ctx context.Context, q askID) (sight, error) {
	v, err := b.serve.Volume(ctx, q.ID)
	return sightOf(v), err
}}

func sightOf(v Volume) sight {
	if v.Epoch == nil {
		return sight{Unknown: true}
	}
	return sight{Epoch: *v.Epoch, Mark: v.Created.UTC().Format(time.RFC3339Nano), Open: v.InUse}
}

// elsewhere asks the other hosts that have a volume. A volume of one host costs a look into
// the catalog.
func (s *server) elsewhere(ctx context.Context, volumeID string) (sights, error) {
	l, err := s.alsoHave(ctx, volumeID)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	out := sights{}
	for _, v := range l {
		if v.Kind == catalog.GoneKind {
			out[v.Host] = sight{Epoch: uint64(v.Epoch), Mark: string(v.Data)} //nolint:gosec // it was one
			continue
		}
		got, err := remoteSight.at(ctx, s.hub.blockStorage(), v.Host, askID{v.ID})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			got = sight{Unknown: true}
		}
		out[v.Host] = got
	}
	return out, nil
}

// freshly tells whether a snapshot has to be fresh: another host may have written to the
// volume, or the catalog does not say.
func (s *server) freshly(ctx context.Context, volumeID string) bool {
	l, err := s.alsoHave(ctx, volumeID)
	return err != nil || len(l) > 0
}

// alsoHave is what the catalog has of a volume at other hosts.
func (s *server) alsoHave(ctx context.Context, volumeID string) ([]catalog.Volume, error) {
	own := s.hub.servers[0] // whose catalog is the hosts'
	if !own.cat.Shared() {
		return nil, nil
	}
	l, err := own.cat.VolumeAt(ctx, volumeID)
	return slices.DeleteFunc(l, func(v catalog.Volume) bool { return v.Host == s.hub.host }), err
}

// difference is why it is not sure that a host did not write between two looks.
type difference struct {
	host, why string
	unknown   bool // the host did not say
}

// differ returns the difference of one host, if there is any.
func differ(was, now sights) (difference, bool) {
	hosts := maps.Clone(was)
	if hosts == nil {
		hosts = sights{}
	}
	maps.Copy(hosts, now)
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		a, before := was[h]
		b, after := now[h]
		switch {
		case after && b.Open:
			return difference{h, "has it open for writing", false}, true
		case before && a.Open:
			return difference{h, "had it open for writing then", false}, true
		case after && b.Unknown, before && a.Unknown:
			return difference{h, "did not say whether it wrote to it", true}, true
		case !before:
			return difference{h, "has the volume too since then", false}, true
		case !after:
			return difference{h, "has the volume no more", false}, true
		case a != b:
			return difference{h, "opened it for writing since then", false}, true
		}
	}
	return difference{}, false
}

// open is a host that has the volume open for writing, "" when none has.
func (s sights) open() string {
	for _, h := range slices.Sorted(maps.Keys(s)) {
		if s[h].Open {
			return h
		}
	}
	return ""
}

// notOpenElsewhere refuses a volume that another host writes to.
func (s *server) notOpenElsewhere(ctx context.Context, v Volume, instead string) (sights, error) {
	now, err := s.elsewhere(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	if h := now.open(); h != "" {
		return nil, refuse(CodeBusy, "volume %s is open for writing at host %s: %s there", v.Name, h, instead)
	}
	return now, nil
}

// doubtElsewhere gives up the checkpoint of the parent if another host may have written to
// the volume since. It is called behind the snapshot: what is asked before says nothing
// of what came until then.
func (r *backupRun) doubtElsewhere(ctx context.Context) error {
	if r.parent.checkpoint == "" {
		return nil
	}
	now, err := r.elsewhere(ctx, r.vol.ID)
	if err != nil {
		return err
	}
	l, err := r.cat.Checkpoints(ctx)
	if err != nil {
		return err
	}
	was := sights{}
	for _, c := range l {
		if c.VolumeID == r.vol.ID && c.Name == r.parent.checkpoint && c.Others != "" {
			if err := json.Unmarshal([]byte(c.Others), &was); err != nil {
				return fmt.Errorf("checkpoint %s in the catalog: %w", c.Name, err)
			}
		}
	}
	if d, ok := differ(was, now); ok {
		r.parent.checkpoint, r.parent.reason = "", fmt.Sprintf("host %s %s", d.host, d.why)
	}
	return nil
}

// stillElsewhere refuses what was read while another host wrote: the snapshot keeps only
// what is written through this host's data plane.
func (r *backupRun) stillElsewhere(ctx context.Context) error {
	if len(r.others) == 0 {
		return nil
	}
	now, err := r.elsewhere(ctx, r.vol.ID)
	if err != nil {
		return err
	}
	d, ok := differ(r.others, now)
	switch {
	case !ok:
	case d.unknown: // the backup is as good as it can be
		r.rec.Warning = joinSentences(r.rec.Warning, fmt.Sprintf("host %s, which has the volume too, did not say whether it wrote to it while it was read", d.host))
	default:
		return refuse(CodeBusy, "host %s wrote to volume %s while it was read, or may have (it %s): back it up there", d.host, r.vol.Name, d.why)
	}
	return nil
}

func (s sights) encode() (string, error) {
	if len(s) == 0 {
		return "", nil
	}
	data, err := json.Marshal(s)
	return string(data), err
}
