package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
	"github.com/cairnbackup/cairn/nbd"
)

// six is a host with 4+2 on six S3 servers, three of each kind.
type six struct {
	*host
	servers []*s3test.Server
	rng     *rand.ChaCha8
	disk    agent.Volume
	content []byte
}

const sixSize = 24 * mib

func newSix(t *testing.T) *six {
	t.Helper()
	s := &six{rng: rand.NewChaCha8([32]byte{6}), servers: sixServers(t)}
	// Slow enough for a server to die while a backup runs.
	s.host = newHostOn(t, 4, 2, func(string) []string { return urlsOf(s.servers, "backups/host", "bandwidth=4MiB") })
	var err error
	if s.disk, err = s.control.CreateVolume(t.Context(), agent.CreateVolume{Name: "disk", Size: sixSize}); err != nil {
		t.Fatal(err)
	}
	s.content = make([]byte, sixSize)
	return s
}

// sixServers starts three S3 servers of each kind, with a bucket on each.
func sixServers(t *testing.T) (servers []*s3test.Server) {
	t.Helper()
	s3test.Keys(t)
	for i := range 6 {
		kind := s3test.Versitygw
		if i%2 == 1 {
			kind = s3test.MinIO
		}
		servers = append(servers, s3test.New(t, kind))
		servers[i].Bucket(t, "backups")
	}
	return servers
}

// urlsOf are the stores at one place of each server.
func urlsOf(servers []*s3test.Server, place string, parameters ...string) (urls []string) {
	for _, s := range servers {
		urls = append(urls, s.URL(place, parameters...))
	}
	return urls
}

// change writes 8 MiB at random places that do not compress.
func (s *six) change() {
	s.t.Helper()
	s.write(s.disk, func(ctx context.Context, c *nbd.Client) error {
		for range 8 {
			at := int(s.rng.Uint64()%(sixSize/mib)) * mib
			_, _ = s.rng.Read(s.content[at : at+mib])
			if err := c.WriteAt(ctx, s.content[at:at+mib], int64(at), false); err != nil {
				return err
			}
		}
		return c.Flush(ctx)
	})
}

// cairn runs the command, which is told where the agent is.
func (s *six) cairn(args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), s.bin, args...)
	cmd.Env = append(os.Environ(), "CAIRN_SOCKET="+s.path("agent.sock"), "CAIRN_PASSWORD_FILE="+s.path("password"))
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cairn %s: %w: %s", args[0]+" "+args[1], err, problem.String())
	}
	return out.String(), nil
}

// backupWhile backs the volume up with the command, and does something as soon as
// a part of it is written. It returns the backup's ID.
func (s *six) backupWhile(do func()) (string, error) {
	s.t.Helper()
	known, err := s.control.Jobs(s.t.Context(), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	type result struct {
		out string
		err error
	}
	ended := make(chan result, 1)
	go func() {
		out, problem := s.cairn("backup", "create", "disk", "--auto", "-o", "json")
		ended <- result{out, problem}
	}()
	err = poll(s.t.Context(), 2*time.Millisecond, func() (bool, error) {
		jobs, jerr := s.control.Jobs(s.t.Context(), 0)
		return slices.ContainsFunc(jobs, func(j agent.Job) bool {
			isNew := !slices.ContainsFunc(known, func(k agent.Job) bool { return k.ID == j.ID })
			if isNew && j.State.Final() {
				jerr = errors.New("the backup ended before anything could happen to it")
			}
			return isNew && j.Progress.Done > mib
		}), jerr
	})
	if err != nil {
		s.t.Fatal(err)
	}
	do()
	r := <-ended
	if r.err != nil {
		return "", r.err
	}
	var made struct{ ID, Status string }
	if err = json.Unmarshal([]byte(r.out), &made); err != nil || made.Status != "available" {
		s.t.Fatalf("backup create says %s, %v", r.out, err)
	}
	return made.ID, nil
}

// listed returns the IDs of the backups that the stores hold, by their state.
func (s *six) listed() map[string]string {
	s.t.Helper()
	out, err := s.onStores(s.without(), "backups", "-o", "json")
	if err != nil {
		s.t.Fatal(err)
	}
	var all []struct{ ID, Status string }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		s.t.Fatal(err)
	}
	got := make(map[string]string)
	for _, b := range all {
		got[b.ID] = b.Status
	}
	return got
}

// onStores runs "cairn repo" on some stores.
func (s *six) onStores(stores []string, args ...string) (string, error) {
	args = append([]string{"repo"}, args...)
	for _, u := range stores {
		args = append(args, "--store", u)
	}
	return s.cairn(args...)
}

// restores compares what the stores give back with what it has to be.
func (s *six) restores(stores []string, id string, want []byte, when string) {
	s.t.Helper()
	file := s.path("restored")
	if _, err := s.onStores(stores, "restore", id, file, "--overwrite"); err != nil {
		s.t.Errorf("%s: %v", when, err)
		return
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: backup %s differs: %d bytes, %v", when, id, len(got), err)
	}
}

// without are the URLs of the stores, without a limit, and with an empty place for some of them: what
// a server says that lost everything.
func (s *six) without(lost ...int) []string {
	var urls []string
	for i, srv := range s.servers {
		place := "backups/host"
		if slices.Contains(lost, i) {
			place = fmt.Sprintf("backups/empty-%d", i)
		}
		urls = append(urls, srv.URL(place))
	}
	return urls
}

// pairs calls do for every two of these numbers.
func pairs(of []int, do func(a, b int)) {
	for i, a := range of {
		for _, b := range of[i+1:] {
			do(a, b)
		}
	}
}

// TestS3SixStores: 4+2 over six S3 servers. Any one may die during a backup and
// nobody notices; a second one fails the backup, whole; any two may be wiped, and
// replaced, and then any two others lost.
func TestS3SixStores(t *testing.T) {
	if testing.Short() {
		t.Skip("long: not with -short")
	}
	s := newSix(t)
	s.change()
	s.backup("disk", agent.CreateBackup{Volume: "disk"})
	made := make(map[string][]byte)
	newest := ""
	for i, srv := range s.servers {
		s.change()
		id, err := s.backupWhile(func() { srv.Kill(t) })
		if err != nil {
			t.Fatalf("server %d (%s) died during a backup: %v", i, srv.Kind, err)
		}
		made[id], newest = bytes.Clone(s.content), id
		s.restores(s.without(), id, s.content, fmt.Sprintf("server %d is dead", i))
		srv.Start(t)
	}

	// What the dead were owed is paid: any two may be lost from here on.
	if out, err := s.onStores(s.without(), "repair", "--apply"); err != nil {
		t.Fatalf("repair: %v\n%s", err, out)
	}

	s.change()
	before := s.listed()
	_, err := s.backupWhile(func() { s.servers[1].Kill(t); s.servers[4].Kill(t) })
	if err == nil || !strings.Contains(err.Error(), s.servers[1].Addr) || !strings.Contains(err.Error(), s.servers[4].Addr) {
		t.Errorf("a backup while two of six servers died: %v", err)
	}
	s.restores(s.without(), newest, made[newest], "two servers are dead")
	for _, i := range []int{1, 4} {
		s.servers[i].Start(t)
	}
	for id, status := range s.listed() {
		if before[id] != status {
			t.Errorf("behind a backup that failed, %s is listed as %s", id, status)
		}
	}
	id, err := s.backupWhile(func() {})
	if err != nil {
		t.Fatalf("with all servers back: %v", err)
	}
	made[id], newest = bytes.Clone(s.content), id
	s.restores(s.without(), id, s.content, "with all servers back")
	pairs([]int{0, 1, 2, 3, 4, 5}, func(a, b int) {
		s.restores(s.without(a, b), newest, made[newest], fmt.Sprintf("servers %d and %d are empty", a, b))
	})

	// Two lose everything, for good, and empty ones take their place.
	for _, i := range []int{0, 3} {
		s.servers[i].Kill(t)
		s.servers[i].Wipe(t)
		s.servers[i].Start(t)
		s.servers[i].Bucket(t, "backups")
	}
	s.restores(s.without(), newest, made[newest], "two servers were wiped")
	for _, i := range []int{0, 3} {
		url := s.servers[i].URL("backups/host")
		if out, rerr := s.onStores(s.without(), "replace-store", url, url); rerr != nil {
			t.Fatalf("replace server %d: %v\n%s", i, rerr, out)
		}
	}
	if out, cerr := s.onStores(s.without(), "check", "--read-data"); cerr != nil {
		t.Fatalf("check behind the replacement: %v\n%s", cerr, out)
	}
	for id, want := range made {
		s.restores(s.without(), id, want, "two servers were replaced")
	}
	pairs([]int{1, 2, 4, 5}, func(a, b int) {
		s.restores(s.without(a, b), newest, made[newest], fmt.Sprintf("servers 0 and 3 were replaced, then %d and %d are empty", a, b))
	})
	s.change()
	if id, err = s.backupWhile(func() {}); err != nil {
		t.Fatalf("the agent that ran all the time: %v", err)
	}
	pairs([]int{0, 1, 2, 3, 4, 5}, func(a, b int) {
		s.restores(s.without(a, b), id, s.content, fmt.Sprintf("the backup behind the replacement, without servers %d and %d", a, b))
	})
}
