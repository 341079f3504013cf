package serve

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The attributes of all volumes together have a limit, and may always shrink.
func TestAttributesOfAllVolumes(t *testing.T) {
	p := testPlane(t, vfs.OS())
	p.maxAttributes = 20
	create := func(name, attributes string) error {
		_, err := p.createVolume(t.Context(), CreateVolume{Name: name, Size: 1 << 20, Attributes: json.RawMessage(attributes)})
		return err
	}
	set := func(name, attributes string) error {
		_, err := p.setAttributes(name, SetAttributes{Attributes: json.RawMessage(attributes)})
		return err
	}
	must(t, create("a", `{"a":12}`))
	must(t, create("b", `{"b":12}`))
	if err := create("c", `{"c":1}`); !errors.Is(err, ErrConflict) {
		t.Errorf("a volume with too many: %v", err)
	}
	must(t, create("c", ``))
	if err := set("a", `{"a":1234567}`); !errors.Is(err, ErrConflict) {
		t.Errorf("too many: %v", err)
	}
	must(t, set("a", `{"a":123456}`))
	p.maxAttributes = 10
	must(t, set("a", `{"a":123}`))
	if err := set("a", `{"a":1234}`); !errors.Is(err, ErrConflict) {
		t.Errorf("more of too many: %v", err)
	}
}

// Attributes do not wait for what takes long.
func TestAttributesDoNotWait(t *testing.T) {
	p := testPlane(t, vfs.OS())
	_, err := p.createVolume(t.Context(), CreateVolume{Name: "vol", Size: 1 << 20})
	must(t, err)
	e, err := p.find("vol")
	must(t, err)
	must(t, e.lock(t.Context())) // as a revert has it
	defer e.unlock()
	done := make(chan error, 1)
	go func() {
		_, err := p.setAttributes("vol", SetAttributes{Attributes: json.RawMessage(`{"a":1}`)})
		done <- err
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(time.Minute):
		t.Fatal("they wait")
	}
}
