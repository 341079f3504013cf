package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/volume"
)

// maxAttributes bounds the attributes of all volumes together: they are kept in
// memory, and a list of the volumes has to be an answer that its client reads whole.
const maxAttributes = 32 << 20

// shown is how attributes are shown: never as nothing, so that a client can send
// back whatever it read.
func shown(a json.RawMessage) json.RawMessage {
	if a == nil {
		return json.RawMessage("{}")
	}
	return a
}

// loadAttributes reads the attributes of a volume, which may turn out not to open.
func (p *plane) loadAttributes(e *entry) {
	e.noting.Lock()
	defer e.noting.Unlock()
	a := volume.LoadAttributes(p.options(), e.dir, e.id)
	e.mu.Lock()
	e.attrs = a
	e.mu.Unlock()
}

// setAttributes replaces the attributes of a volume, served or not. It does not
// wait for other changes of the volume, of which some take long.
func (p *plane) setAttributes(ref string, req SetAttributes) (Volume, error) {
	e, err := p.find(ref)
	if err != nil {
		return Volume{}, err
	}
	title := e.title()
	next, was, err := req.normal(title)
	if err != nil {
		return Volume{}, err
	}
	e.noting.Lock()
	defer e.noting.Unlock()
	if err = p.roomForAttributes(e, next); err != nil {
		return Volume{}, err
	}
	now, err := volume.SetAttributes(p.options(), e.dir, e.id, next, was)
	if err == nil || now != nil {
		e.mu.Lock()
		e.attrs = now
		e.mu.Unlock()
	}
	if err == nil {
		return p.describe(e, positions), nil
	}
	if _, statErr := p.fs.Stat(e.dir); errors.Is(statErr, fs.ErrNotExist) {
		return Volume{}, refuse(CodeNotFound, "volume %s has been deleted", title)
	}
	if errors.Is(err, volume.ErrChanged) {
		return Volume{}, refuse(CodeConflict, "the attributes of volume %s are not those that were read before, because somebody has changed them: read them again", title)
	}
	return Volume{}, err
}

// normal checks a request and brings what is in it into the normal form; was is
// nil when the request has none.
func (r *SetAttributes) normal(title string) (next, was json.RawMessage, err error) {
	if len(r.Attributes) == 0 || bytes.Equal(r.Attributes, []byte("null")) {
		return nil, nil, refuse(CodeInvalid, "there are no attributes to be set for volume %s: send {} to remove those that it has", title)
	}
	if next, err = attributes.Normal(r.Attributes); err != nil {
		return nil, nil, refuse(CodeInvalid, "volume %s: %v", title, err)
	}
	if len(r.Was) == 0 {
		return next, nil, nil
	}
	if bytes.Equal(r.Was, []byte("null")) {
		return nil, nil, refuse(CodeInvalid, "what was read of volume %s before is null: leave it out, or send {} if there were no attributes", title)
	}
	if was, err = attributes.Normal(r.Was); err != nil {
		return nil, nil, refuse(CodeInvalid, "what was read of volume %s before: %v", title, err)
	}
	return next, shown(was), nil
}

// roomForAttributes refuses attributes of a volume, nil for a new one, that would
// make those of all volumes too many.
func (p *plane) roomForAttributes(of *entry, next json.RawMessage) error {
	all, mine := 0, 0
	for _, e := range p.sorted() {
		e.mu.RLock()
		n := len(e.attrs)
		e.mu.RUnlock()
		all += n
		if e == of {
			mine = n
		}
	}
	if len(next) > mine && all-mine+len(next) > p.maxAttributes {
		return refuse(CodeConflict, "the attributes of all volumes would have more than %d bytes, and that is the limit: keep less in them", p.maxAttributes)
	}
	return nil
}
