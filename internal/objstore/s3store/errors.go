package s3store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// fail turns an error of minio-go into one of objstore's, in a sentence that
// says what to do where something can be done.
func (s *Store) fail(ctx context.Context, o *op, what, name string, err error) error {
	wrap := func(kind error, because string) error {
		if kind == nil {
			return fmt.Errorf("%s %s in %s: %s", what, name, s.url, because)
		}
		return fmt.Errorf("%s %s in %s: %w: %s", what, name, s.url, kind, because)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s in %s: %w", what, name, s.url, ctx.Err())
	}
	if errors.Is(err, errCredentials) {
		return wrap(objstore.ErrDown, err.Error())
	}
	if errors.Is(err, errNoS3) {
		return wrap(objstore.ErrDown, errNoS3.Error()+": see that endpoint= is the address of its S3 service")
	}
	var e minio.ErrorResponse
	if !errors.As(err, &e) || e.StatusCode == 0 {
		// No answer, or none that could be read.
		text := plain(err)
		if !o.sent.Load() {
			return wrap(objstore.ErrDown, "it cannot be reached: "+text)
		}
		return wrap(nil, "no answer that can be used: "+text)
	}
	because, kind := classify(e, s.config)
	return wrap(kind, because)
}

// classify says what an answer other than success means. A nil kind is a fault
// of the store that leaves the outcome open.
func classify(e minio.ErrorResponse, c Config) (because string, kind error) {
	is := func(codes ...string) bool { return slices.Contains(codes, e.Code) }
	text := e.Code
	if m := strings.TrimSpace(e.Message); m != "" {
		text = fmt.Sprintf("%s (%s)", clip(m), e.Code)
	}
	switch {
	case is("NoSuchBucket"):
		return "there is no bucket " + c.Bucket + ": make it first, or correct the name", objstore.ErrDown
	case is("NoSuchKey", "NoSuchVersion"):
		return text, objstore.ErrNotExist
	case is("InvalidRange") || e.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return text, objstore.ErrRange
	case e.StatusCode == http.StatusPreconditionFailed:
		return text, objstore.ErrExist
	case is("ConditionalRequestConflict", "OperationAborted", "SlowDown", "SlowDownRead", "TooManyRequests", "RequestLimitExceeded") ||
		strings.HasPrefix(e.Code, "Throttling") || e.StatusCode == http.StatusTooManyRequests:
		return text, objstore.ErrBusy
	case is("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "StorageFull", "ServiceUnavailableStorageFull") ||
		e.StatusCode == http.StatusInsufficientStorage:
		return text, objstore.ErrNoSpace
	case is("EntityTooLarge") || e.StatusCode == http.StatusRequestEntityTooLarge:
		return "the server takes no object of this size: " + text, objstore.ErrTooLarge
	case is("InvalidAccessKeyId", "XAdminUserNotFound"):
		return "the server does not know the access key: correct AWS_ACCESS_KEY_ID or the profile", objstore.ErrDown
	case is("SignatureDoesNotMatch"):
		return "the secret key is wrong: correct AWS_SECRET_ACCESS_KEY or the profile", objstore.ErrDown
	case is("RequestTimeTooSkewed", "RequestExpired"):
		return "this machine's clock and the server's differ too much: set the clock", objstore.ErrDown
	case is("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException"):
		return "the session token has expired or is wrong: renew AWS_SESSION_TOKEN or the profile", objstore.ErrDown
	case is("AuthorizationHeaderMalformed", "InvalidRegion", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect") || e.StatusCode/100 == 3:
		if e.Region != "" && e.Region != c.Region {
			return "the bucket is in region " + clip(e.Region) + ": say so with region=", objstore.ErrDown
		}
		return "the bucket is elsewhere or the region is wrong: correct endpoint= and region=: " + text, objstore.ErrDown
	case e.StatusCode == http.StatusForbidden, e.StatusCode == http.StatusUnauthorized:
		return "the server refuses it: the key needs the right to list the bucket and to get, put and delete its objects: " + text, objstore.ErrDown
	case e.StatusCode == http.StatusNotFound:
		return text, objstore.ErrDown
	case e.StatusCode == http.StatusNotImplemented:
		return "the server lacks what Cairn needs, such as creating an object only if there is none: " + text, nil
	default:
		return fmt.Sprintf("the server answers %d: %s", e.StatusCode, text), nil
	}
}

// plain is what went wrong on the way, without the request's URL.
func plain(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		if strings.HasPrefix(u.Err.Error(), "Connection closed by foreign host") {
			return "the connection was closed"
		}
		err = u.Err
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return "there is no host " + dns.Name
	}
	return clip(err.Error())
}

// clip bounds what a server can put into an error, and keeps it one line.
func clip(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
