package s3store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
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

// Somebody who has the store's keys cannot delete what is retained, but can put
// markers and other versions before it. A store with versions=first reads past
// them: the first version of a name is the one that Cairn wrote.

// firsts lists the first version of each object. The server names those of one
// key one after the other, the newest first.
func (s *Store) firsts(ctx context.Context, prefix string) iter.Seq[minio.ObjectInfo] {
	return func(yield func(minio.ObjectInfo) bool) {
		var last minio.ObjectInfo
		all := s.client.ListObjectsIter(ctx, s.config.Bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, WithVersions: true})
		for info := range all {
			if info.Err != nil {
				yield(info)
				return
			}
			if info.IsDeleteMarker {
				continue
			}
			if last.Key != "" && last.Key != info.Key && !yield(last) {
				return
			}
			last = info
		}
		if last.Key != "" {
			yield(last)
		}
	}
}

// first returns the first version of an object, or the server's error for one
// that is not there.
func (s *Store) first(ctx context.Context, name string) (minio.ObjectInfo, error) {
	for info := range s.firsts(ctx, name) {
		if info.Err != nil {
			return info, info.Err
		}
		if info.Key == s.key(name) {
			return info, nil
		}
		break // a longer name: that of the object itself comes before it
	}
	return minio.ObjectInfo{}, minio.ErrorResponse{StatusCode: http.StatusNotFound, Code: "NoSuchKey", Message: "there is no version of it"}
}

func (s *Store) readOnly(what, name string) error {
	return fmt.Errorf("%s %s in %s: it is opened with versions=first, to read what was written first: %w", what, name, s.url, objstore.ErrDown)
}
