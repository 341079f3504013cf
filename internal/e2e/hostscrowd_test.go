package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/cairnbackup/cairn/agent"
)

// crowd has all nodes asked at once for backups of the volumes of all, and to delete others,
// each thing at two of them.
func (c *cluster) crowd() {
	t := c.t
	type thing struct {
		id      string
		content []byte
	}
	var disks []thing
	var old []string
	for i, n := range c.nodes {
		for k := range 4 {
			id, content := n.volume(fmt.Sprintf("crowd-%d-%d", i, k), mib)
			disks = append(disks, thing{id, content})
			if k < 3 {
				old = append(old, n.back(id, fmt.Sprintf("old-%d-%d", i, k), nil))
			}
		}
	}
	for _, id := range old {
		if b := c.nodes[0].ends(id); b.Status != agent.BackupAvailable {
			t.Fatalf("%+v", b)
		}
	}
	known := map[string]bool{}
	l, err := c.nodes[0].control.Jobs(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range l {
		known[j.ID] = true
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := map[string][]byte{}
	deleted := map[string]int{}
	for i, d := range disks {
		for k := range 2 {
			n := c.nodes[(i+k)%3]
			wg.Go(func() {
				a := n.ask("demo", http.MethodPost, "backups", object{"backup": object{"volume_id": d.id, "name": "crowd"}})
				id, _ := a.at("backup", "id").(string)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case a.status == http.StatusAccepted && begun[id] == nil:
					begun[id] = d.content
				case a.status == http.StatusBadRequest && strings.Contains(a.fault(), "must be available or in-use"):
				default:
					t.Errorf("%s: backup of %s: %v", n.name, d.id, a)
				}
			})
		}
	}
	for i, id := range old {
		for k := range 2 {
			n := c.nodes[(i+k)%3]
			wg.Go(func() {
				a := n.ask("demo", http.MethodDelete, "backups/"+id, nil)
				mu.Lock()
				defer mu.Unlock()
				if a.status == http.StatusAccepted {
					deleted[id]++
				} else if a.status != http.StatusNotFound && a.status != http.StatusBadRequest || a.fault() == "" {
					t.Errorf("%s: delete %s: %v", n.name, id, a)
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d requests: %d backups begun, %d deleted", 2*len(disks)+2*len(old), len(begun), len(deleted))
	if len(begun) < len(disks) || len(deleted) != len(old) {
		t.Errorf("%d backups of %d volumes, %d of %d deleted", len(begun), len(disks), len(deleted), len(old))
	}
	for id, content := range begun {
		if b := c.nodes[0].ends(id); b.Status != agent.BackupAvailable {
			t.Errorf("%+v", b)
		}
		c.contents[id] = content
	}
	for _, n := range c.nodes {
		n.quiet()
	}
	if l, err = c.nodes[0].control.Jobs(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	jobs := map[string]int{}
	for _, j := range l {
		if known[j.ID] {
			continue
		}
		if begun[j.Backup] == nil || j.State != agent.JobSucceeded {
			t.Errorf("%+v", j)
		}
		jobs[j.Backup]++
		if started := c.starts(j.ID); len(started) != 1 || started[0] != j.Host {
			t.Errorf("job %s of %s was started at %v", j.ID, j.Host, started)
		}
	}
	for id := range begun {
		if jobs[id] != 1 {
			t.Errorf("backup %s has %d jobs", id, jobs[id])
		}
	}
}

// starts are the nodes whose logs say that they started a job, once for each time.
func (c *cluster) starts(job string) (nodes []string) {
	c.t.Helper()
	for _, n := range c.nodes {
		log, err := os.ReadFile(n.path("agent.log"))
		if err != nil {
			c.t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `msg="job started"`) && strings.Contains(line, "job="+job) {
				nodes = append(nodes, n.name)
			}
		}
	}
	return nodes
}
