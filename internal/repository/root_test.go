package repository

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/attributes"
)

// noted makes a backup with attributes.
func (c *content) noted(tb testing.TB, r *Repository, id, notes string) (Outcome, error) {
	tb.Helper()
	s, err := r.Begin(tb.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "disk"})
	if err != nil {
		tb.Fatal(err)
	}
	top, err := c.write(tb.Context(), s, nil)
	if err != nil {
		tb.Fatal(err)
	}
	rt := Root{BackupID: id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top, Attributes: json.RawMessage(notes)}
	o, err := s.Commit(tb.Context(), rt)
	if o == OutcomeFailed {
		if abortErr := s.Abort(tb.Context()); abortErr != nil {
			tb.Fatal(abortErr)
		}
	}
	return o, err
}

func TestBackupAttributes(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 20, 3)
	long := `{"a":"` + strings.Repeat("x", attributes.MaxBytes-len(`{"a":""}`)) + `"}`
	for _, tt := range []struct{ name, notes, want, says string }{
		{name: "none", notes: "", want: ""},
		{name: "null", notes: "null", want: ""},
		{name: "empty", notes: "{}", want: ""},
		{name: "some", notes: `{ "owner": "<me>", "n": 1.50 }`, want: `{"owner":"\u003cme\u003e","n":1.50}`},
		{name: "as many as may be", notes: long, want: long},
		{name: "too many", notes: long[:len(long)-2] + `x"}`, says: "65537 bytes, and 65536 is the limit"},
		{name: "a list", notes: `[]`, says: "not a JSON object"},
		{name: "no JSON", notes: `{`, says: "not JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := v.noted(t, r, tt.name, tt.notes)
			if tt.says != "" {
				if o != OutcomeFailed || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.name) {
					t.Fatalf("committed as %v, %v", o, err)
				}
				if _, findErr := r.Backup(t.Context(), tt.name); !errors.Is(findErr, ErrNotFound) {
					t.Errorf("it is there: %v", findErr)
				}
				return
			}
			if err != nil || o != OutcomeCommitted {
				t.Fatal(o, err)
			}
			for _, r := range []*Repository{r, c.open(t)} {
				b, err := r.Backup(t.Context(), tt.name)
				if err != nil || string(b.Attributes) != tt.want {
					t.Errorf("attributes %s, %v; want %s", b.Attributes, err, tt.want)
				}
				clear(b.Attributes) // what the caller does with them is his
			}
			if b, err := r.Backup(t.Context(), tt.name); err != nil || string(b.Attributes) != tt.want {
				t.Errorf("a second look: %s, %v", b.Attributes, err)
			}
		})
	}
}

// Attributes are sealed, go to the trash with their backup and come back with it;
// a pin has none.
func TestAttributesOfTheTrash(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 20, 3)
	const notes = `{"secret":"shibboleth"}`
	if o, err := v.noted(t, r, "b", notes); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	if err := errors.Join(r.Pin(t.Context(), "p", "b", "test"), r.Delete(t.Context(), "b")); err != nil {
		t.Fatal(err)
	}
	if l, err := r.Trash(t.Context()); err != nil || len(l) != 1 || string(l[0].Attributes) != notes {
		t.Errorf("trash: %+v, %v", l, err)
	}
	if b, err := r.Undelete(t.Context(), "b"); err != nil || string(b.Attributes) != notes {
		t.Errorf("undeleted: %+v, %v", b, err)
	}
	r = c.open(t)
	if b, err := r.Backup(t.Context(), "b"); err != nil || string(b.Attributes) != notes {
		t.Errorf("undeleted: %+v, %v", b, err)
	}
	if st, err := r.find(t.Context(), "p"); err != nil || st.root.rec.Pin == nil || st.root.rec.Attributes != nil {
		t.Errorf("pin: %+v, %v", st, err)
	}
	for _, m := range c.mem {
		for _, name := range m.Names() {
			object, err := getObject(t.Context(), m, name)
			if err != nil || bytes.Contains(object, []byte("shibboleth")) {
				t.Errorf("%s on %s: %v; it shows what the attributes are", name, m.URL(), err)
			}
		}
	}
}

// A root record without attributes is what it was before there were any, and one
// whose attributes break the rules is the record without them.
func TestRootRecordAttributes(t *testing.T) {
	rec := rootRecord{Session: ident{5}, Size: 1, BlockSize: blockSize}
	head, err := json.Marshal(rec)
	if err != nil || bytes.Contains(head, []byte("attributes")) {
		t.Errorf("%s, %v", head, err)
	}
	_, r := fresh(t)
	name, err := r.keys.rootName("p", "v", ident{5})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ notes, want string }{
		{`{"a":1}`, `{"a":1}`},
		{`{}`, ``},
		{`null`, ``},
		{`"text"`, ``},
		{`{"a":"` + strings.Repeat("x", attributes.MaxBytes) + `"}`, ``},
		{strings.Repeat(`{"a":`, 99) + "1" + strings.Repeat("}", 99), ``},
	} {
		rec.Attributes = json.RawMessage(tt.notes)
		object, err := r.keys.sealRoot(0, name, &rec, []byte("top"))
		if err != nil {
			t.Fatal(err)
		}
		rt, err := r.keys.openRoot(name, object)
		if err != nil || string(rt.rec.Attributes) != tt.want || rt.rec.Size != 1 || string(rt.top) != "top" {
			t.Errorf("attributes %.20s: %+v, %v", tt.notes, rt, err)
		}
	}
}

// Long attributes of many backups do not fill the memory.
func TestSeenAttributes(t *testing.T) {
	_, r := fresh(t)
	notes := json.RawMessage(`{"a":"` + strings.Repeat("x", attributes.MaxBytes-len(`{"a":""}`)) + `"}`)
	for i := range 3 * maxSeenAttributes / attributes.MaxBytes {
		r.remember(&root{name: strconv.Itoa(i / 2), rec: rootRecord{Attributes: notes}}) // each twice
		sum := 0
		for _, rt := range r.rootSeen {
			sum += len(rt.rec.Attributes)
		}
		if sum > maxSeenAttributes || sum != r.seenAttributes || r.rootSeen[strconv.Itoa(i/2)] == nil {
			t.Fatalf("%d records are kept with %d bytes, %d by its count", len(r.rootSeen), sum, r.seenAttributes)
		}
	}
}
