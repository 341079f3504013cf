package e2e

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
	"github.com/cairnbackup/cairn/nbd"
)

// TestS3Host is the main job on two MinIO servers, a versitygw and a folder:
// backups, one server lost, a restore by the agent, another by what is left and
// the password alone.
func TestS3Host(t *testing.T) {
	s3test.Keys(t)
	var servers []*s3test.Server
	for _, k := range []s3test.Kind{s3test.MinIO, s3test.Versitygw, s3test.MinIO} {
		servers = append(servers, s3test.New(t, k))
		servers[len(servers)-1].Bucket(t, "backups")
	}
	h := newHostOn(t, 2, 2, func(dir string) []string {
		return []string{
			servers[0].URL("backups/host-1", "region=us-east-1", "style=path", "bandwidth=1GiB", "requests=10000"),
			servers[1].URL("backups"), servers[2].URL("backups/host-1"), dir + "/store",
		}
	})
	const size = 24 * mib
	disk, err := h.control.CreateVolume(t.Context(), agent.CreateVolume{Name: "disk", Size: size})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(content[:size/2])
	write := func(off int) {
		h.write(disk, func(ctx context.Context, c *nbd.Client) error {
			for at := off; at < size/2; at += mib {
				if werr := c.WriteAt(ctx, content[at:at+mib], int64(at), false); werr != nil {
					return werr
				}
			}
			return c.Flush(ctx)
		})
	}
	write(0)
	h.backup("disk", agent.CreateBackup{Volume: "disk"})
	_, _ = rng.Read(content[4*mib : 6*mib])
	write(4 * mib)
	servers[0].Kill(t)
	rec := h.backup("disk", agent.CreateBackup{Volume: "disk", Incremental: true})

	same := func(file string) {
		t.Helper()
		got, rerr := os.ReadFile(file)
		if rerr != nil || !bytes.Equal(got, content) {
			t.Errorf("%s differs: %d bytes, %v", file, len(got), rerr)
		}
	}
	h.restore(rec.ID, h.path("by-agent"))
	same(h.path("by-agent"))
	st, err := h.control.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	down := 0
	for _, s := range st.Repository.Stores {
		if s.State == "down" {
			down++
			if !strings.Contains(s.URL, "s3://backups/host-1?endpoint=http://"+servers[0].Addr) || !strings.Contains(s.Error, "cannot be reached") {
				t.Errorf("status of the store that is down: %+v", s)
			}
		}
	}
	if down != 1 {
		t.Errorf("%d stores are down: %+v", down, st.Repository.Stores)
	}

	// Without the agent, and with one more server lost.
	h.kill(h.agent)
	servers[2].Kill(t)
	args := []string{"repo", "restore", rec.ID, h.path("by-hand"), "--password-file", h.path("password")}
	for _, s := range h.stores {
		args = append(args, "--store", s)
	}
	if out, err := exec.CommandContext(t.Context(), h.bin, args...).CombinedOutput(); err != nil {
		t.Fatalf("repo restore: %v\n%s", err, out)
	}
	same(h.path("by-hand"))

	// The keys are nowhere but in the environment of those who need them.
	for _, name := range []string{"agent.log", "serve.log"} {
		if text, err := os.ReadFile(h.path(name)); err != nil || bytes.Contains(text, []byte(s3test.SecretKey)) {
			t.Errorf("%s tells the secret key (%v)", name, err)
		}
	}
}

// TestS3InitRefusals: init makes nothing but objects, and says what is missing.
func TestS3InitRefusals(t *testing.T) {
	s3test.Keys(t)
	srv := s3test.New(t, s3test.Versitygw)
	srv.Bucket(t, "there")
	bin := cairnBinary(t)
	password := t.TempDir() + "/password"
	if err := os.WriteFile(password, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	initialize := func(env string, stores ...string) string {
		t.Helper()
		args := []string{"repo", "init", "--password-file", password}
		for _, s := range stores {
			args = append(args, "--store", s)
		}
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Env = append(os.Environ(), env)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return string(out)
		}
		return "made: " + string(out)
	}
	tests := []struct {
		name, env string
		stores    []string
		want      string
	}{
		{"no bucket", "", []string{srv.URL("there/a"), srv.URL("missing")}, "there is no bucket missing: make it first"},
		{"wrong key", "AWS_SECRET_ACCESS_KEY=other", []string{srv.URL("there/a")}, "the secret key is wrong"},
		{"one place", "", []string{srv.URL("there/a"), srv.URL("there/a/b")}, "one lies in the other"},
		{"made", "", []string{srv.URL("there/a"), srv.URL("there/b"), srv.URL("there/c")}, "made: made repository"},
		{"made already", "", []string{srv.URL("there/a"), srv.URL("there/d")}, "belongs to repository"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := initialize(tt.env, tt.stores...); !strings.Contains(got, tt.want) {
				t.Errorf("repo init says %q, want %q", got, tt.want)
			}
		})
	}
}
