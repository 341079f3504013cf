package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// view is what qemu has at one moment.
type view struct {
	nodes   []node
	devices []device
	exports []export
	fdsets  []fdset
	roots   map[string]string // device -> the node that it really stands on
	files   map[string]string // node -> what its child "file" is
	parents map[string]int    // node -> how many have it as a child
}

type node struct {
	Name    string   `json:"node-name"`
	Driver  string   `json:"drv"`
	Ro      bool     `json:"ro"`
	Bitmaps []bitmap `json:"dirty-bitmaps"`
	Image   struct {
		Size     int64 `json:"virtual-size"`
		Actual   int64 `json:"actual-size"`
		Specific struct {
			Data struct {
				Compat string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
		Backing *struct{} `json:"backing-image"`
	} `json:"image"`
}

type bitmap struct {
	Name         string `json:"name"`
	Count        int64  `json:"count"` // bytes
	Granularity  int64  `json:"granularity"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
}

// device is a guest's device, or a drive that none has.
type device struct {
	Drive    string `json:"device"` // of -drive
	Qdev     string `json:"qdev"`   // ID or QOM path
	Inserted *node  `json:"inserted"`
}

type export struct {
	ID   string `json:"id"`
	Node string `json:"node-name"`
	Type string `json:"type"`
}

type fdset struct {
	ID  int64 `json:"fdset-id"`
	FDs []struct {
		Opaque string `json:"opaque"`
	} `json:"fds"`
}

type graph struct {
	Nodes []struct {
		ID   uint64 `json:"id"`
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"nodes"`
	Edges []struct {
		Parent uint64 `json:"parent"`
		Child  uint64 `json:"child"`
		Name   string `json:"name"`
	} `json:"edges"`
}

// look asks qemu for all that it has.
func look(ctx context.Context, m *monitor) (*view, error) {
	v := &view{roots: map[string]string{}, files: map[string]string{}, parents: map[string]int{}}
	var g graph
	for _, q := range []struct {
		command string
		args    any
		result  any
	}{
		{"query-named-block-nodes", map[string]any{"flat": true}, &v.nodes},
		{"query-block", nil, &v.devices},
		{"query-block-exports", nil, &v.exports},
		{"query-fdsets", nil, &v.fdsets},
		// The only way to see who stands on whom, which others may change at any
		// time: a filter that is taken out must leave to the device what is
		// below it then, not what was below it once.
		{"x-debug-query-block-graph", nil, &g},
	} {
		if err := m.call(ctx, q.command, q.args, q.result); err != nil {
			return nil, noGuest(err)
		}
	}
	v.draw(g)
	return v, nil
}

// draw takes from qemu's graph what stands on what.
func (v *view) draw(g graph) {
	nodes, backends := map[uint64]string{}, map[uint64]string{}
	for _, n := range g.Nodes {
		switch n.Type {
		case "block-driver":
			nodes[n.ID] = n.Name
		case "block-backend":
			backends[n.ID] = n.Name
		}
	}
	for _, e := range g.Edges {
		child := nodes[e.Child]
		v.parents[child]++
		if e.Name == "file" {
			v.files[nodes[e.Parent]] = child
		}
		if name := backends[e.Parent]; name != "" && e.Name == "root" {
			v.roots[name] = child
		}
	}
}

// noGuest says what a monitor is that does not know a command.
func noGuest(err error) error {
	var c *CommandError
	if errors.As(err, &c) && c.Class == "CommandNotFound" {
		return fmt.Errorf("qemu: this monitor is not one of a qemu with a guest, 7.1 or newer, that a snapshot can be taken of: %w", err)
	}
	return err
}

func (v *view) node(name string) (node, bool) {
	i := slices.IndexFunc(v.nodes, func(n node) bool { return n.Name == name })
	if i < 0 {
		return node{}, false
	}
	return v.nodes[i], true
}

func (v *view) hasExport(id string) bool {
	return slices.ContainsFunc(v.exports, func(e export) bool { return e.ID == id })
}

// stack returns the nodes from a device's down to the disk, which is the last, through
// the filters that snapshots have put on it.
func (v *view) stack(root string) []string {
	all := []string{root}
	for range v.nodes { // a bound, should qemu describe a circle
		n, ok := v.node(root)
		below := v.files[root]
		if !ok || !isFilter(n) || below == "" {
			break
		}
		root = below
		all = append(all, root)
	}
	return all
}

// stands reports whether a device stands on the node that query-block names, which
// leaves out the filters of block jobs. To put another node below the device then would
// take the guest's writes away from the job.
func (v *view) stands(d device) bool {
	for _, name := range []string{d.Drive, d.Qdev, d.qom()} {
		if root, ok := v.roots[name]; ok && name != "" {
			return root == d.Inserted.Name
		}
	}
	return false
}

// qom is the path of a device's object in qemu.
func (d device) qom() string {
	if strings.HasPrefix(d.Qdev, "/") {
		return d.Qdev
	}
	return "/machine/peripheral/" + d.Qdev
}

// answersTo reports whether a device is what a user means by a name.
func (d device) answersTo(name string) bool {
	short := strings.TrimSuffix(strings.TrimPrefix(d.qom(), "/machine/peripheral/"), "/virtio-backend")
	return name != "" && (name == d.Drive || d.Qdev != "" && (name == d.Qdev || name == d.qom() || name == short))
}

// target is a disk as it was found: the device, what it stands on now, the disk itself
// below, and how many snapshots' filters are between.
type target struct {
	device  device
	root    string
	base    node
	filters int
}

// resolve finds the disk that a node or device name means.
func (v *view) resolve(name string) (target, error) {
	var found *target
	var bases []string
	for _, d := range v.devices {
		if d.Inserted == nil || d.Qdev == "" {
			if d.answersTo(name) {
				return target{}, fmt.Errorf("qemu: %s has no medium, or no device of the guest has it (%w)", name, ErrNoDisk)
			}
			continue
		}
		stack := v.stack(d.Inserted.Name)
		t := target{device: d, root: stack[0], filters: len(stack) - 1}
		t.base, _ = v.node(stack[t.filters])
		bases = append(bases, t.base.Name)
		if t.base.Name == name || d.answersTo(name) {
			found = &t
		}
	}
	if found != nil {
		same := slices.DeleteFunc(bases, func(b string) bool { return b != found.base.Name })
		if len(same) > 1 {
			return target{}, fmt.Errorf("qemu: %d devices of the guest have the disk %s at once, and would write past each other's snapshots (%w)", len(same), name, ErrState)
		}
		return *found, nil
	}
	if _, ok := v.node(name); ok {
		return target{}, fmt.Errorf("qemu: %s is not what a device of the guest stands on; that is one of %q (%w)", name, bases, ErrNoDisk)
	}
	return target{}, fmt.Errorf("qemu: the guest has no disk %s, or has it no more; it has %q (%w)", name, bases, ErrNoDisk)
}
