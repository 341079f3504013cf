package agent

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/repository"
)

// recordService is what a record says has made it: the clients want a name that begins
// like those of Cinder's drivers.
const recordService = "cinder.backup.drivers.cairn.CairnBackupDriver"

// recordPurpose is what records are signed for.
const recordPurpose = "cairn backup record 1"

const maxRecord = 256 << 10 // bytes of a record in base64

// envelope is a record outside of the catalog: base64 of its JSON is Cinder's
// backup_url. Whoever imports it may change the ID, and nothing else.
type envelope struct {
	ID        string `json:"id"`
	Record    record `json:"record"`
	Signature string `json:"signature"` // of Record, hexadecimal
}

// record is what is signed: which backup of which repository it is, and what the
// repository does not know of it.
type record struct {
	Version     int               `json:"version"`
	Repository  string            `json:"repository"`
	Stored      string            `json:"backup"` // its ID in the repository
	Project     string            `json:"project_id"`
	User        string            `json:"user_id"`
	Name        string            `json:"display_name"`
	Description string            `json:"display_description"`
	Container   string            `json:"container"`
	Metadata    map[string]string `json:"metadata"`
	VolumeID    string            `json:"volume_id"`
	Size        int64             `json:"size"` // bytes
	Created     time.Time         `json:"created_at"`
}

func (b *blockStorage) sign(r record) (string, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	tag, err := b.repo.Sign(recordPurpose, data)
	return hex.EncodeToString(tag), err
}

// ExportBackup returns the record of an available backup.
func (b *blockStorage) ExportBackup(ctx context.Context, id string) (cinderapi.Record, error) {
	x, err := b.restorable(ctx, id)
	if err != nil {
		return cinderapi.Record{}, err
	}
	e := envelope{ID: x.ID, Record: record{
		Version: 1, Repository: b.repo.Info().ID, Stored: x.Stored(), Project: x.Project, User: x.User, Name: x.Name, Description: x.Description,
		Container: x.Container, Metadata: x.Metadata, VolumeID: x.VolumeID, Size: x.Size, Created: x.Created.UTC(),
	}}
	if e.Signature, err = b.sign(e.Record); err != nil {
		return cinderapi.Record{}, err
	}
	data, err := json.Marshal(e)
	if err != nil {
		return cinderapi.Record{}, err
	}
	return cinderapi.Record{Service: recordService, URL: base64.StdEncoding.EncodeToString(data)}, nil
}

// decodeRecord takes a record apart, as strictly as it was made.
func decodeRecord(r cinderapi.Record) (envelope, error) {
	var e envelope
	bad := func(why string) (envelope, error) {
		return e, cinderapi.Invalid("Invalid input received: The backup record cannot be imported: %s.", why)
	}
	switch {
	case r.Service != recordService:
		return bad("it was not made by Cairn, but by " + clip(r.Service))
	case len(r.URL) > maxRecord:
		return bad("it is too large to be one")
	}
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.URL))
	if err != nil {
		return bad("its backup_url is not base64, or is not whole")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if d.Decode(&e) != nil || d.More() {
		return bad("its backup_url is no record of Cairn's, or is not whole")
	}
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return bad("the id in it is no UUID")
	}
	e.ID = id.String() // there are other ways to write one
	if e.Record.Version != 1 {
		return bad("a later version of Cairn made it: install that version")
	}
	return e, nil
}

// ImportBackup takes a record in: the backup that it is of has to be in the repository.
// A record that is there already, and says the same, is what was asked for. The backup
// stays its project's.
func (b *blockStorage) ImportBackup(ctx context.Context, _ Caller, r cinderapi.Record) (cinderapi.Backup, error) {
	if b.closed() != nil {
		return cinderapi.Backup{}, notOpen()
	}
	e, err := decodeRecord(r)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	want, err := b.sign(e.Record)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	switch {
	case e.Record.Repository != b.repo.Info().ID:
		return cinderapi.Backup{}, cinderapi.Invalid("Invalid input received: The backup record is of repository %s, and this agent has repository %s.", clip(e.Record.Repository), b.repo.Info().ID)
	case subtle.ConstantTimeCompare([]byte(want), []byte(e.Signature)) != 1:
		return cinderapi.Backup{}, cinderapi.Invalid("Invalid input received: The backup record was changed: only its id may be, all else is signed.")
	}
	if old, found, oerr := b.recorded(ctx, e); oerr != nil || found {
		return old, oerr // without having waited for a deletion
	}
	unlock, err := b.removing.lock(ctx, "") // what is found in the repository must not go meanwhile
	if err != nil {
		return cinderapi.Backup{}, fault(err, "")
	}
	defer unlock()
	if old, found, oerr := b.recorded(ctx, e); oerr != nil || found {
		return old, oerr
	}
	stored, err := b.repo.Backup(ctx, e.Record.Stored)
	if errors.Is(err, repository.ErrNotFound) || err == nil && stored.State != repository.Available {
		return cinderapi.Backup{}, cinderapi.Invalid("Invalid backup: Backup %s is not in the repository any more.", e.Record.Stored)
	}
	if err != nil {
		return cinderapi.Backup{}, fault(err, "Invalid backup: ")
	}
	x := known(stored)
	x.ID, x.Updated = e.ID, time.Now().UTC()
	if x.ID != stored.ID {
		// Its checkpoint is the other's: two records must not start from one, nor drop it.
		x.StoredAs, x.Checkpoint = stored.ID, ""
	}
	x.Name, x.Description, x.Metadata, x.Container = e.Record.Name, e.Record.Description, e.Record.Metadata, e.Record.Container
	if err = b.cat.PutBackup(ctx, x); err != nil {
		return cinderapi.Backup{}, err
	}
	return b.Backup(ctx, x.ID)
}

// recorded returns the backup of a record that is here already, and refuses one that
// cannot be taken in: what it finds is sure to keep its data while b.removing is held.
func (b *blockStorage) recorded(ctx context.Context, e envelope) (old cinderapi.Backup, found bool, err error) {
	same, err := b.cat.BackupsStoredAs(ctx, e.Record.Stored)
	if err != nil {
		return old, false, err
	}
	for _, x := range same {
		if x.Status == catalog.Deleting { // its data may go at any moment
			return old, false, cinderapi.Invalid("Invalid backup: Backup %s is being deleted.", x.ID)
		}
	}
	x, err := b.cat.Backup(ctx, e.ID)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return old, false, nil
	case err != nil:
		return old, false, err
	case x.Stored() != e.Record.Stored || x.Project != e.Record.Project:
		return old, false, cinderapi.Invalid("Invalid backup: Backup %s already exists in database.", e.ID)
	}
	old, err = b.Backup(ctx, x.ID)
	return old, true, err
}
