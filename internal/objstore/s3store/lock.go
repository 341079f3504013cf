package s3store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Object Lock hangs on versions. An object that is deleted by its name alone is
// only hidden behind a marker, and its version stays, locked or not: so a store
// with lock= deletes versions, and the server refuses those that are retained.

var _ objstore.Retainer = (*Store)(nil)

// Retain implements objstore.Retainer.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if s.config.Lock == "" {
		return fmt.Errorf("retain %s in %s: %w: lock= is not in its URL", name, s.url, errors.ErrUnsupported)
	}
	if err := begin(ctx, name); err != nil {
		return fmt.Errorf("retain: %w", err)
	}
	have, err := s.retained(ctx, name, "")
	if err != nil || !have.Before(until) {
		return err
	}
	mode := minio.Compliance
	if s.config.Lock == Governance {
		mode = minio.Governance
	}
	until = until.UTC().Truncate(time.Second).Add(time.Second) // what is sent has whole seconds
	o := &op{}
	err = s.client.PutObjectRetention(o.in(ctx), s.config.Bucket, s.key(name), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until})
	if err != nil {
		return s.fail(ctx, o, "retain", name, err)
	}
	return nil
}

// retained returns until when a version is retained, the zero time if it is
// not. The empty version is the latest.
func (s *Store) retained(ctx context.Context, name, version string) (time.Time, error) {
	o := &op{}
	_, until, err := s.client.GetObjectRetention(o.in(ctx), s.config.Bucket, s.key(name), version)
	switch {
	case err == nil && until != nil:
		return *until, nil
	case err == nil || minio.ToErrorResponse(err).Code == "NoSuchObjectLockConfiguration":
		return time.Time{}, nil
	default:
		return time.Time{}, s.fail(ctx, o, "retain", name, err)
	}
}

// deleteVersions deletes all versions of an object, then the markers that hide
// it: an object of which something is retained does not come into sight again.
func (s *Store) deleteVersions(ctx context.Context, name string) error {
	o := &op{list: true}
	var versions, markers []string
	all := s.client.ListObjectsIter(o.in(ctx), s.config.Bucket, minio.ListObjectsOptions{Prefix: s.key(name), Recursive: true, WithVersions: true})
	for info := range all {
		if info.Err != nil {
			return s.fail(ctx, o, "delete", name, info.Err)
		}
		if info.Key != s.key(name) {
			continue // a longer name
		}
		if info.IsDeleteMarker {
			markers = append(markers, info.VersionID)
		} else {
			versions = append(versions, info.VersionID)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s in %s: %w", name, s.url, err)
	}
	for _, v := range append(versions, markers...) {
		if err := s.deleteVersion(ctx, name, v); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) deleteVersion(ctx context.Context, name, version string) error {
	o := &op{}
	err := s.client.RemoveObject(o.in(ctx), s.config.Bucket, s.key(name), minio.RemoveObjectOptions{VersionID: version})
	if err == nil {
		return nil
	}
	failed := s.fail(ctx, o, "delete", name, err)
	if errors.Is(failed, objstore.ErrNotExist) {
		return nil
	}
	// Servers say in different words that a version is locked.
	if until, rerr := s.retained(ctx, name, version); rerr == nil && !until.IsZero() {
		return fmt.Errorf("delete %s in %s: %w until %s", name, s.url, objstore.ErrRetained, until.UTC().Format(time.DateTime))
	}
	return failed
}
