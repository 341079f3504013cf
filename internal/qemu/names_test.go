package qemu

import (
	"strings"
	"testing"
)

// FuzzNames: what a name in qemu is taken for is what has that name, and nothing that
// is made has a name that qemu would not take.
func FuzzNames(f *testing.F) {
	f.Add("cairn-vol1-c1@4194304")
	f.Add("cairn-vol1-043a718774c5-f")
	f.Add("cairn-vol1-043a718774c5-e.one")
	f.Add("cairn-vol1-c1@-1")
	f.Add("cairn-vol1-@")
	f.Fuzz(func(t *testing.T, name string) {
		d := &Disk{Tag: "vol1"}
		if c, size, ok := d.checkpointOf(name); ok && d.bitmap(c, size) != name && validName("checkpoint", c) == nil {
			// A number may be written in other ways than ours.
			if again, same, ok := d.checkpointOf(d.bitmap(c, size)); !ok || again != c || same != size {
				t.Errorf("%q is taken for %q of %d bytes", name, c, size)
			}
		}
		if stem, ok := d.stemOf(name); ok && (!strings.HasPrefix(name, stem) || !strings.HasPrefix(stem, d.prefix())) {
			t.Errorf("%q has the stem %q", name, stem)
		}
		if validName("ID", name) != nil {
			return
		}
		for _, kind := range []string{kindFleece, kindFilter, kindAccess} {
			if node := d.stem(name) + kind; len(node) > 31 {
				t.Errorf("%q is too long for a node", node)
			}
		}
		if id, ok := d.snapshotID(d.stem(name) + kindExport + name); !ok || id != name {
			t.Errorf("the export of %q is taken for that of %q", name, id)
		}
		if c, size, ok := d.checkpointOf(d.bitmap(name, 7)); !ok || c != name || size != 7 {
			t.Errorf("the bitmap of %q is taken for that of %q", name, c)
		}
	})
}

// FuzzMonitor: whatever a peer says, a call ends with an answer or an error.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte("{\"QMP\": {}}\n{\"return\": {}, \"id\": \"x-1\"}\n"))
	f.Add([]byte("{\"event\": \"X\"}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": \"x-1\"}\n"))
	f.Add([]byte("{\"return\": 7, \"id\": {}}\nnull\n[]\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		m := &monitor{conn: scripted{}, in: newReader(says), socket: "s", name: "x"}
		var v view
		_ = m.call(t.Context(), "query-block", nil, &v.devices)
		_ = m.call(t.Context(), "query-named-block-nodes", nil, &v.nodes)
		_, _ = v.resolve("d0")
	})
}
