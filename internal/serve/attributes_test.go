package serve_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

func setAttributes(attributes, was string) serve.SetAttributes {
	return serve.SetAttributes{Attributes: json.RawMessage(attributes), Was: json.RawMessage(was)}
}

func (p *plane) hasAttributes(t *testing.T, ref, want string) {
	t.Helper()
	v, err := p.Volume(t.Context(), ref)
	if err != nil || string(v.Attributes) != want {
		t.Errorf("attributes of %s: %s, %v; want %s", ref, v.Attributes, err, want)
	}
	vs, err := p.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range vs {
		if o.ID == v.ID && string(o.Attributes) != want {
			t.Errorf("attributes of %s in a list: %s, want %s", ref, o.Attributes, want)
		}
	}
}

func TestAttributes(t *testing.T) {
	p := start(t, options(t))
	p.create(t, "plain", mib)
	p.hasAttributes(t, "plain", `{}`)
	v, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: mib, Attributes: json.RawMessage(`{ "owner": "<me>", "n": 1.50 }`)})
	first := `{"owner":"\u003cme\u003e","n":1.50}`
	if err != nil || string(v.Attributes) != first {
		t.Fatalf("created: %s, %v", v.Attributes, err)
	}
	p.hasAttributes(t, "db", first)

	c := dial(t, v.URI) // a volume in use has them too
	v, err = p.SetAttributes(t.Context(), v.ID, serve.SetAttributes{Attributes: json.RawMessage(`{"a":1}`), Was: v.Attributes})
	if err != nil || v.Name != "db" || string(v.Attributes) != `{"a":1}` {
		t.Fatalf("set: %+v, %v", v, err)
	}
	closeClient(t, c)
	if _, err = p.ReopenVolume(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	p.hasAttributes(t, "db", `{"a":1}`)
	p = p.restart(t)
	p.hasAttributes(t, "db", `{"a":1}`)
	p.hasAttributes(t, "plain", `{}`)
	for _, step := range []struct{ set, was, want string }{
		{`{"a":2}`, ``, `{"a":2}`},
		{`{}`, `{"a":2}`, `{}`},
		{`{"a":3}`, `{}`, `{"a":3}`},
	} {
		if _, err = p.SetAttributes(t.Context(), "db", setAttributes(step.set, step.was)); err != nil {
			t.Fatalf("set %s: %v", step.set, err)
		}
		p.hasAttributes(t, "db", step.want)
	}
	if err = p.DeleteVolume(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	p.create(t, "db", mib)
	p.hasAttributes(t, "db", `{}`)
}

func TestAttributesRefused(t *testing.T) {
	p := start(t, options(t))
	large := `{"a":"` + strings.Repeat("x", 64<<10) + `"}`
	if _, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: mib, Attributes: json.RawMessage(`{"a":1}`)}); err != nil {
		t.Fatal(err)
	}
	send := raw(p.o.Control)
	for _, tt := range []struct {
		name, method, path, body string
		code                     serve.Code
		says                     string
	}{
		{"a list", "PUT", "/v1/volumes/db/attributes", `{"attributes":[]}`, serve.CodeInvalid, "not a JSON object"},
		{"too large", "PUT", "/v1/volumes/db/attributes", `{"attributes":` + large + `}`, serve.CodeInvalid, "65536 is the limit"},
		{"too deep", "PUT", "/v1/volumes/db/attributes", `{"attributes":` + strings.Repeat(`{"a":`, 99) + "1" + strings.Repeat("}", 99) + `}`, serve.CodeInvalid, "nested"},
		{"none at all", "PUT", "/v1/volumes/db/attributes", `{}`, serve.CodeInvalid, "send {} to remove"},
		{"null", "PUT", "/v1/volumes/db/attributes", `{"attributes":null}`, serve.CodeInvalid, "send {} to remove"},
		{"null before", "PUT", "/v1/volumes/db/attributes", `{"attributes":{"a":2},"was":null}`, serve.CodeInvalid, "null"},
		{"a list before", "PUT", "/v1/volumes/db/attributes", `{"attributes":{"a":2},"was":[1]}`, serve.CodeInvalid, "read of volume db before"},
		{"others before", "PUT", "/v1/volumes/db/attributes", `{"attributes":{"a":2},"was":{"a":0}}`, serve.CodeConflict, "read them again"},
		{"none before", "PUT", "/v1/volumes/db/attributes", `{"attributes":{"a":2},"was":{}}`, serve.CodeConflict, "read them again"},
		{"no such volume", "PUT", "/v1/volumes/x/attributes", `{"attributes":{}}`, serve.CodeNotFound, "no volume"},
		{"a new volume with a list", "POST", "/v1/volumes", `{"name":"x","size":1048576,"attributes":[]}`, serve.CodeInvalid, "not a JSON object"},
		{"a new volume with too many", "POST", "/v1/volumes", `{"name":"x","size":1048576,"attributes":` + large + `}`, serve.CodeInvalid, "65536 is the limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, answer, err := send(tt.method, tt.path, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			var e serve.Error
			if err = json.Unmarshal(answer, &e); err != nil || e.Code != tt.code || !strings.Contains(e.Text, tt.says) {
				t.Errorf("answer %s, want %s and %q", answer, tt.code, tt.says)
			}
		})
	}
	p.hasAttributes(t, "db", `{"a":1}`)
	if vs, err := p.Volumes(t.Context()); err != nil || len(vs) != 1 {
		t.Errorf("volumes %+v, %v", vs, err)
	}
}

// Of many that count in the attributes nobody loses another's change.
func TestAttributesConcurrently(t *testing.T) {
	p := start(t, options(t))
	p.create(t, "db", mib)
	const writers, rounds = 8, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < rounds; {
				v, err := p.Volume(t.Context(), "db")
				if err != nil {
					t.Error(err)
					return
				}
				var a struct{ N int }
				if err = json.Unmarshal(v.Attributes, &a); err != nil {
					t.Error(err)
					return
				}
				_, err = p.SetAttributes(t.Context(), "db", setAttributes(fmt.Sprintf(`{"N":%d}`, a.N+1), string(v.Attributes)))
				switch {
				case err == nil:
					done++
				case !errors.Is(err, serve.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	p.hasAttributes(t, "db", fmt.Sprintf(`{"N":%d}`, writers*rounds))
	p = p.restart(t)
	p.hasAttributes(t, "db", fmt.Sprintf(`{"N":%d}`, writers*rounds))
}

// A volume whose data are away still has its attributes, and takes others.
func TestAttributesOfUnopenableVolume(t *testing.T) {
	p := start(t, options(t))
	v, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: mib, Attributes: json.RawMessage(`{"a":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err = p.stop(); err != nil {
		t.Fatal(err)
	}
	if err = os.Rename(v.Path, v.Path+".away"); err != nil {
		t.Fatal(err)
	}
	p = start(t, p.o)
	p.hasAttributes(t, "db", `{"a":1}`)
	got, err := p.SetAttributes(t.Context(), "db", setAttributes(`{"a":2}`, `{"a":1}`))
	if err != nil || got.Status != serve.StatusError || string(got.Attributes) != `{"a":2}` {
		t.Errorf("set: %+v, %v", got, err)
	}
	if err = os.Rename(v.Path+".away", v.Path); err != nil {
		t.Fatal(err)
	}
	if got, err = p.ReopenVolume(t.Context(), "db"); err != nil || string(got.Attributes) != `{"a":2}` {
		t.Errorf("reopen: %+v, %v", got, err)
	}
	// Nor does it take a record that can be read.
	if err = p.stop(); err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(filepath.Dir(v.Path), "volume.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = start(t, p.o)
	p.hasAttributes(t, v.ID, `{"a":2}`)
}

// Damaged attributes keep nobody from his volume, and are kept for people.
func TestDamagedAttributes(t *testing.T) {
	p := start(t, options(t))
	v, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", Size: mib, Attributes: json.RawMessage(`{"a":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err = p.stop(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(v.Path)
	if err = os.WriteFile(filepath.Join(dir, "attributes.json"), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = start(t, p.o)
	p.hasAttributes(t, "db", `{}`)
	closeClient(t, dial(t, v.URI))
	if kept, readErr := os.ReadFile(filepath.Join(dir, "attributes.damaged")); readErr != nil || string(kept) != "rot" {
		t.Errorf("kept: %q, %v", kept, readErr)
	}
	if _, err = p.SetAttributes(t.Context(), "db", setAttributes(`{"a":2}`, `{}`)); err != nil {
		t.Fatal(err)
	}
	p.hasAttributes(t, "db", `{"a":2}`)
	// What a later release wrote stays.
	later := []byte(`{"format":"cairn-volume-attributes","version":2}`)
	if err = os.WriteFile(filepath.Join(dir, "attributes.json"), later, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = p.SetAttributes(t.Context(), "db", setAttributes(`{"a":3}`, ``)); !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("set over a later release's: %v", err)
	}
	if kept, readErr := os.ReadFile(filepath.Join(dir, "attributes.json")); readErr != nil || string(kept) != string(later) {
		t.Errorf("kept: %q, %v", kept, readErr)
	}
}
