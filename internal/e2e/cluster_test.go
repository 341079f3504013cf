package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
)

// node is a host of a cluster, on a machine of its own.
type node struct {
	*cloud
	*box

	name  string
	token map[string]string // by user
}

// cluster is hosts that share a database and six folders as stores.
type cluster struct {
	t        *testing.T
	nodes    []*node
	contents map[string][]byte // of volumes, by the ID of the backup that has it
}

// newCluster starts three, of which each has more settings for its agent.
func newCluster(t *testing.T, settings ...[]string) *cluster {
	t.Helper()
	needClients(t)
	network := newLAN(t)
	db := pgtest.NewAt(t, network.ip, network.network)
	catalog := catalogAt(t, db, "postgres")
	c := &cluster{t: t, contents: map[string][]byte{}}
	bin := cairnBinary(t)
	for i, more := range settings {
		n := &node{box: network.machine(), name: fmt.Sprintf("node-%d", i+1), token: map[string]string{}}
		n.cloud = &cloud{host: emptyHost(t, bin), rng: rand.NewChaCha8([32]byte{byte(i)}), session: newTranscript(), addr: n.ip + ":8776"}
		n.host.within = n.within()
		n.settings = append([]string{
			"--api-listen", n.addr, "--host", n.name, "--scrub", "0", "--no-serve",
			"--catalog", catalog,
		}, more...)
		c.nodes = append(c.nodes, n)
		if i == 0 {
			for s := range 6 {
				n.stores = append(n.stores, n.path(fmt.Sprintf("store%d", s+1)))
			}
			n.initRepository(4, 2)
			n.addUsers("demo", "admin")
		} else {
			n.stores = c.nodes[0].stores
			users, err := os.ReadFile(c.nodes[0].path("state", "identity.json"))
			if err = errors.Join(err, os.MkdirAll(n.path("state"), 0o700)); err == nil {
				err = os.WriteFile(n.path("state", "identity.json"), users, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		n.startServe()
		n.startAgent()
	}
	return c
}

// catalogAt is the address of a catalog, with the password in a file.
func catalogAt(t *testing.T, db *pgtest.Server, database string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(db.Addr)
	name := filepath.Join(t.TempDir(), "pgpass")
	if err == nil {
		err = os.WriteFile(name, []byte(strings.Join([]string{host, port, database, pgtest.User, db.Password}, ":")+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&passfile=%s", pgtest.User, db.Addr, database, name)
}

// volume makes one with random content at its beginning, and returns its ID and that.
func (n *node) volume(name string, size int) (id string, content []byte) {
	n.t.Helper()
	a := n.asked(http.StatusAccepted, "demo", http.MethodPost, "volumes", object{"volume": object{"size": 1, "name": name}})
	id, _ = a.at("volume", "id").(string)
	content = make([]byte, size)
	n.fill(id, content, 0, size)
	n.unused(id)
	return id, content
}

// unused waits until nobody is connected to a volume.
func (n *node) unused(id string) {
	n.t.Helper()
	n.until("nobody uses the volume", func(ctx context.Context) (bool, error) {
		v, err := n.data.Volume(ctx, id)
		return !v.InUse, err
	})
}

// back begins a backup of a volume, by any node, and returns its ID.
func (n *node) back(volume, name string, more object) string {
	n.t.Helper()
	body := object{"volume_id": volume, "name": name}
	maps.Copy(body, more)
	id, _ := n.asked(http.StatusAccepted, "demo", http.MethodPost, "backups", object{"backup": body}).at("backup", "id").(string)
	return id
}

// backup is a record as the agent has it.
func (n *node) record(id string) agent.Backup {
	n.t.Helper()
	b, err := n.control.Backup(n.t.Context(), id)
	if err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	return b
}

// ends waits until a backup is neither made nor restored, nor undecided.
func (n *node) ends(id string) agent.Backup {
	n.t.Helper()
	n.until("backup "+id+" is settled", func(ctx context.Context) (bool, error) {
		b, err := n.control.Backup(ctx, id)
		return err == nil && !b.Undecided && (b.Status == agent.BackupAvailable || b.Status == agent.BackupError), err
	})
	return n.record(id)
}

// restored restores a backup to a new volume, at the node that is asked, and returns its ID.
func (n *node) restored(backup string) string {
	n.t.Helper()
	id, _ := n.asked(http.StatusAccepted, "demo", http.MethodPost, "backups/"+backup+"/restore", object{"restore": object{}}).at("restore", "volume_id").(string)
	n.until("volume "+id+" is restored", func(context.Context) (bool, error) {
		switch s := n.ask("demo", http.MethodGet, "volumes/"+id, nil).at("volume", "status"); s {
		case "available":
			return true, nil
		case "restoring-backup":
			return false, nil
		default:
			return false, fmt.Errorf("it is %v", s)
		}
	})
	return id
}

// working waits until the job of a backup or of a restore, at this node, is past its beginning.
func (n *node) working(kind, backup string, past int64) agent.Job {
	n.t.Helper()
	var j agent.Job
	n.until("a "+kind+" of "+backup+" has begun", func(ctx context.Context) (bool, error) {
		l, err := n.control.Jobs(ctx, 0)
		i := slices.IndexFunc(l, func(j agent.Job) bool { return j.Kind == kind && j.Backup == backup })
		if i < 0 {
			return false, err
		}
		if j = l[i]; j.State.Final() {
			return false, fmt.Errorf("it has ended before: %s %s", j.State, j.Error)
		}
		return j.State == agent.JobRunning && j.Progress.Done > past, nil
	})
	return j
}

// up says which nodes are up, as this one has it.
func (n *node) up() map[string]bool {
	n.t.Helper()
	got := map[string]bool{}
	for _, s := range n.asked(http.StatusOK, "admin", http.MethodGet, "os-services", nil).each("services") {
		if s["binary"] == "cinder-backup" {
			name, _ := s["host"].(string)
			got[name] = s["state"] == "up"
		}
	}
	return got
}

// becomes waits until this node says of another whether it is up.
func (n *node) becomes(other *node, up bool) {
	n.t.Helper()
	n.until(fmt.Sprintf("%s is up: %v", other.name, up), func(context.Context) (bool, error) { return n.up()[other.name] == up, nil })
}

// stored are the backups that the stores have, by ID.
func (c *cluster) stored() map[string]bool {
	c.t.Helper()
	n := c.nodes[0]
	args := []string{"repo", "backups", "-o", "json", "--password-file", n.path("password")}
	for _, s := range n.stores {
		args = append(args, "--store", s)
	}
	out, err := exec.CommandContext(c.t.Context(), n.bin, args...).Output()
	var l []struct{ ID, Status string }
	if err == nil {
		err = json.Unmarshal(out, &l)
	}
	if err != nil {
		c.t.Fatalf("repo backups: %v: %s", err, out)
	}
	got := map[string]bool{}
	for _, b := range l {
		if b.Status == "available" {
			got[b.ID] = true
		}
	}
	return got
}
