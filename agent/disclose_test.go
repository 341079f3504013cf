package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// missing is what a store says that is not there, in the repository's words about it.
func missing(t *testing.T, s objstore.Store) error {
	t.Helper()
	err := s.Put(t.Context(), "packs/ab/cd", []byte("x"))
	if err == nil {
		t.Fatalf("%s takes what it is given", s.URL())
	}
	return fmt.Errorf("a backup needs 4 of the 6 stores, 2 can be written to: %w: %w", repository.ErrTooFewStores, errors.Join(err, err))
}

// folderStore is a store whose folder has gone.
func folderStore(t *testing.T, dir string) objstore.Store {
	t.Helper()
	s, err := dirstore.Create(dir, dirstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err = os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return s
}

// bucketStore is one at an address where nobody answers.
func bucketStore(t *testing.T) objstore.Store {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	c, _, err := s3store.Parse("s3://secret-bucket/prefix?endpoint=http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3store.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Why a backup failed tells a project what it can use, and not where anything is on the
// host and behind it. The operator sees the whole sentence.
func TestFailReasonsWithoutPlaces(t *testing.T) {
	spaced := filepath.Join(t.TempDir(), "my secret disk")
	_, unreachable := serve.NewClient("/run/secret/serve.sock").Volumes(t.Context())
	_, noCatalog := catalog.Open(t.Context(), "/proc/secret/catalog.db")
	_, readErr := os.ReadFile("/var/lib/secret/state/overlays/x")
	unknown := fmt.Errorf("it becomes available or fails when the stores answer again, as they did not say whether it was committed: %w",
		fmt.Errorf("the outcome of session 7 is unknown: 3 of 6 stores answered and 2 took the commit, 4 are needed: %w", missing(t, folderStore(t, spaced))))
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errStopping)
	cases := []struct {
		name string
		err  error
		want string // what is shown begins so
	}{
		{"a folder that is not there", missing(t, folderStore(t, spaced)), "a backup needs 4 of the 6 stores, 2 can be written to: too few stores"},
		{"a bucket that is down", missing(t, bucketStore(t)), "a backup needs 4 of the 6 stores, 2 can be written to: too few stores"},
		{"an outcome that is not known", unknown, "it becomes available or fails when the stores answer again, as they did not say whether it was committed: the outcome of session 7 is unknown: 3 of 6 stores answered and 2 took the commit, 4 are needed: a backup needs"},
		{"a data plane that is down", fmt.Errorf("take a snapshot: %w", unreachable), "take a snapshot (the operator"},
		{"a data plane alone", unreachable, ""},
		{"a catalog", noCatalog, ""},
		{"a folder of the host", readErr, ""},
		{"a file in a sentence", errors.New("the folder /var/lib/secret is full"), onlyOperator},
		{"a database", fmt.Errorf("record backup 1: %w", fmt.Errorf("%w: check %s (%w)", catalog.ErrUnavailable, "postgres://secret@10.1.2.3/cairn", errors.New("dial tcp 10.1.2.3:5432: connect: refused"))), "record backup 1: the database of the catalog does not answer (the operator"},
		{"a name that is not found", errors.New("ask the store: dial tcp: lookup secret.example: no such host"), "ask the store (the operator"},
		{"a port", errors.New("no answer in time: secret.example:9000 is slow"), "no answer in time (the operator"},
		{"an IPv6 address", errors.New("no answer in time: [fe80::1:secret]:90 [fe80::1]:9000"), "no answer in time (the operator"},
		{"a bracket that stays open", errors.New("it is away (for how long nobody knows: /srv/secret)"), "it is away (for how long nobody knows) (the operator"},
		{"a cause that is told whole", failure(ended, context.Canceled), errStopping.Error()},
		{"a command's words", refuse(CodeConflict, "volume v could not be quiesced: %v: mend that", errors.New("quiesce: /etc/secret freeze v: exit status 1; it said: secret")), "volume v could not be quiesced: quiesce (the operator"},
		{"a guest's monitor", errors.New("qemu: there is no monitor /run/secret.qmp: is the guest running? (qemu cannot be reached)"), onlyOperator},
		{"a fleece", errors.New("qemu: what the guest overwrote could not be saved (no room in /var/secret, or too slow)"), onlyOperator},
		{"an NBD server", fmt.Errorf("%w: volume v (%s): refused", source.ErrAway, "nbd://me:secret@filer/secret"), "a foreign volume does not answer (the operator"},
		{"an object and a time", errors.New("pack packs/ab/cd is on 3 stores, 4 are needed, since 2026-01-02 03:04:05"), "pack packs/ab/cd is on 3 stores, 4 are needed, since 2026-01-02 03:04:05"},
	}
	r := apiRig(t, nil)
	r.stopAgent()
	cat, err := catalog.Open(t.Context(), filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	ids, reasons := make([]string, len(cases)), make([]string, len(cases))
	for i, c := range cases {
		if c.err == nil {
			t.Fatalf("%s: no error", c.name)
		}
		ids[i], reasons[i] = uuid.NewString(), failure(t.Context(), c.err).Text
		rec := Backup{ID: ids[i], Project: "a", Status: catalog.Failed, VolumeID: uuid.NewString(), Created: time.Now(), FailReason: reasons[i]}
		if err = cat.PutBackup(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err = cat.Close(); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := r.get(ann, "backups/"+ids[i]).text("backup", "fail_reason")
			if !strings.HasPrefix(got, c.want) || len(strings.Fields(got)) < leastWords {
				t.Errorf("shown: %q, want %q", got, c.want)
			}
			answer := r.call(http.StatusBadRequest, root, http.MethodPost, "backups/"+ids[i]+"/action", object{"os-reset_status": object{"status": "available"}}).fault()
			for _, secret := range []string{"secret", "/run", "/var", "/proc", "/tmp", "://", "127.0.0.1", "10.1.2.3", "dial"} {
				if strings.Contains(got, secret) || strings.Contains(answer, secret) {
					t.Errorf("%q is in what is shown, %q, or in the answer to a reset, %q", secret, got, answer)
				}
			}
			if b, berr := r.agent.Backup(t.Context(), ids[i]); berr != nil || b.FailReason != reasons[i] {
				t.Errorf("the operator sees %q, %v, want %q", b.FailReason, berr, reasons[i])
			}
		})
	}
}
