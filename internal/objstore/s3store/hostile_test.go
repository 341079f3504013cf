package s3store_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // what http.Server takes
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// answering returns a store before a server that answers as it is told.
func answering(t *testing.T, h http.HandlerFunc) (objstore.Store, *atomic.Int64) {
	t.Helper()
	s3test.Keys(t)
	var requests atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return open(t, s3test.URL(strings.TrimPrefix(srv.URL, "http://"), "cairn")), &requests
}

// TestAuthorities: a server whose certificate nobody vouches for is down, one
// whose authority ca= names is not.
func TestAuthorities(t *testing.T) {
	s3test.Keys(t)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "<Error><Code>NoSuchKey</Code></Error>")
	}))
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	url := "s3://cairn?endpoint=" + srv.URL
	if _, err := open(t, url).Stat(t.Context(), "a"); !errors.Is(err, objstore.ErrDown) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without ca: %v", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, url+"&ca="+ca).Stat(t.Context(), "a"); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("with ca: %v", err)
	}
	for _, file := range []string{ca + ".none", os.DevNull} {
		c, _, err := s3store.Parse(url + "&ca=" + file)
		if err == nil {
			_, err = s3store.Open(c)
		}
		if err == nil || !strings.Contains(err.Error(), "ca=") {
			t.Errorf("ca=%s: %v", file, err)
		}
	}
}

// TestAnswers goes through what a server may say, and what that means.
func TestAnswers(t *testing.T) {
	none := errors.New("no error of objstore")
	tests := []struct {
		status int
		code   string
		put    error
		get    error
		text   string
	}{
		{404, "NoSuchKey", objstore.ErrNotExist, objstore.ErrNotExist, ""},
		{404, "NoSuchBucket", objstore.ErrDown, objstore.ErrDown, "make it first"},
		{404, "SomethingElse", objstore.ErrDown, objstore.ErrDown, "SomethingElse"},
		{404, "", objstore.ErrDown, objstore.ErrDown, "does not speak S3"},
		{403, "AccessDenied", objstore.ErrDown, objstore.ErrDown, "the key needs the right"},
		{403, "SignatureDoesNotMatch", objstore.ErrDown, objstore.ErrDown, "secret key is wrong"},
		{403, "InvalidAccessKeyId", objstore.ErrDown, objstore.ErrDown, "does not know"},
		{403, "RequestTimeTooSkewed", objstore.ErrDown, objstore.ErrDown, "set the clock"},
		{400, "ExpiredToken", objstore.ErrDown, objstore.ErrDown, "expired"},
		{403, "QuotaExceeded", objstore.ErrNoSpace, objstore.ErrNoSpace, ""},
		{507, "XMinioStorageFull", objstore.ErrNoSpace, objstore.ErrNoSpace, ""},
		{507, "", objstore.ErrNoSpace, objstore.ErrNoSpace, ""},
		{412, "PreconditionFailed", objstore.ErrExist, objstore.ErrExist, ""},
		{409, "ConditionalRequestConflict", objstore.ErrBusy, objstore.ErrBusy, ""},
		{503, "SlowDown", objstore.ErrBusy, objstore.ErrBusy, ""},
		{429, "", objstore.ErrBusy, objstore.ErrBusy, ""},
		{500, "InternalError", none, none, "500"},
		{502, "", none, none, "502"},
		{501, "NotImplemented", none, none, "lacks what Cairn needs"},
		{413, "", objstore.ErrTooLarge, objstore.ErrTooLarge, "of this size"},
		{400, "AuthorizationHeaderMalformed", objstore.ErrDown, objstore.ErrDown, "in region eu-9: say so"},
		{301, "PermanentRedirect", objstore.ErrDown, objstore.ErrDown, "elsewhere"},
	}
	all := []error{objstore.ErrExist, objstore.ErrNotExist, objstore.ErrRange, objstore.ErrDown, objstore.ErrNoSpace, objstore.ErrBusy, objstore.ErrTooLarge}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d %s", tt.status, tt.code), func(t *testing.T) {
			s, requests := answering(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(tt.status)
				if tt.code == "" {
					_, _ = io.WriteString(w, "<html>no</html>")
					return
				}
				region := ""
				if tt.code == "AuthorizationHeaderMalformed" {
					region = "<Region>eu-9</Region>"
				}
				fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>m</Message>%s</Error>`, tt.code, region)
			})
			check := func(op string, err, want error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("%s = %v, want %q in it", op, err, tt.text)
				}
				for _, e := range all {
					if errors.Is(err, e) != (e == want) { //nolint:errorlint // the very one
						t.Errorf("%s = %v, want %v", op, err, want)
					}
				}
			}
			check("put", s.Put(t.Context(), "a", []byte("x")), tt.put)
			_, err := s.Get(t.Context(), "a", 0, -1, nil)
			check("get", err, tt.get)
			if n := requests.Load(); n != 2 {
				t.Errorf("%d requests for two calls: the client tries again by itself", n)
			}
		})
	}
}

// endless writes for as long as anyone reads.
func endless(w http.ResponseWriter, piece string) {
	for {
		if _, err := io.WriteString(w, piece); err != nil {
			return
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	tests := []struct {
		name string
		h    http.HandlerFunc
	}{
		{"an endless listing", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<ListBucketResult>")
			endless(w, "<Contents><Key>"+strings.Repeat("a", 100)+"</Key><Size>1</Size></Contents>")
		}},
		{"an endless error", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			endless(w, strings.Repeat("a", 1000))
		}},
		{"an endless 404", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			endless(w, strings.Repeat("a", 1000))
		}},
		{"a listing in a circle", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken><Contents><Key>k1</Key><Size>1</Size></Contents><Contents><Key>k2</Key><Size>1</Size></Contents></ListBucketResult>")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := answering(t, tt.h)
			if err := s.List(t.Context(), "", func(objstore.Info) error { return nil }); err == nil {
				t.Error("List succeeded")
			}
		})
	}
}

// TestPagesOfAProxy: whatever is answered with 200 by something that is no S3
// server, nothing is taken for stored, for an empty bucket or for an object.
func TestPagesOfAProxy(t *testing.T) {
	for _, page := range []string{"", "<html><body>Welcome</body></html>", "{}"} {
		s, _ := answering(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, page)
		})
		for name, op := range ops(s) {
			if err := op(t.Context()); err == nil || errors.Is(err, objstore.ErrNotExist) {
				t.Errorf("%s = %v behind %q", name, err, page)
			}
		}
	}
}

func TestRangesAreChecked(t *testing.T) {
	body := strings.Repeat("x", 100)
	part := func(contentRange, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", contentRange)
			w.Header().Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, body)
		}
	}
	tests := []struct {
		name string
		h    http.HandlerFunc
		want error // nil = any
	}{
		{"another place", part("bytes 0-9/100", body[:10]), nil},
		{"no range", part("nonsense", body[:10]), nil},
		{"negative", part("bytes -5-9/100", body[:10]), nil},
		{"too few bytes", part("bytes 50-59/100", body[:9]), nil},
		{"too many bytes", part("bytes 50-59/100", body[:11]), nil},
		{"a short object", part("bytes 50-54/55", body[:5]), objstore.ErrRange},
		{"the whole object", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
			_, _ = io.WriteString(w, body)
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := answering(t, tt.h)
			got, err := s.Get(t.Context(), "a", 50, 10, []byte("kept"))
			if err == nil || string(got) != "kept" || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Get = %q, %v", got, err)
			}
		})
	}
	t.Run("a huge object", func(t *testing.T) {
		s, _ := answering(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000000000")
			w.Header().Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
			w.WriteHeader(http.StatusOK)
		})
		if _, err := s.Get(t.Context(), "a", 0, -1, nil); !errors.Is(err, objstore.ErrTooLarge) {
			t.Errorf("Get = %v", err)
		}
	})
}

// TestPutGivesItsBodyBack has a server answer before it has read the request:
// net/http goes on sending, but not the caller's bytes.
func TestPutGivesItsBodyBack(t *testing.T) {
	s, _ := answering(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) })
	body := make([]byte, 16<<20)
	for range 4 {
		if err := s.Put(t.Context(), "a", body); err == nil {
			t.Error("Put succeeded")
		}
		for i := range body { // for the race detector
			body[i]++
		}
	}
}
