package s3store

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// ErrURL is the error of a store's URL that cannot be used. The sentence that it
// is wrapped in says what would be.
var ErrURL = errors.New("invalid store URL")

// Scheme is what URLs of this kind of store begin with.
const Scheme = "s3://"

// The endpoint and the region where none is named.
const (
	amazon        = "s3.amazonaws.com"
	defaultRegion = "us-east-1"
)

// maxPrefix leaves room for the longest object name in a key, which has at most
// 1024 bytes.
const maxPrefix = 400

// Style is how the bucket is named in a request.
type Style string

// Styles. Auto is Host at Amazon and the providers known to want it, else Path.
const (
	Auto Style = "auto"
	Path Style = "path" // https://HOST/BUCKET/KEY
	Host Style = "host" // https://BUCKET.HOST/KEY
)

// Lock is how the server is asked to retain objects (S3 Object Lock).
type Lock string

// Locks. Nobody can shorten Compliance; Governance the owner of the bucket can.
const (
	Compliance Lock = "compliance"
	Governance Lock = "governance"
)

// Config says where a store is and how it is reached. It holds no secrets.
type Config struct {
	Bucket string
	Prefix string // of every key: empty, or without a slash at either end

	Endpoint string // host or host:port; empty = Amazon
	Insecure bool   // http instead of https
	Region   string // empty = AWS_REGION, AWS_DEFAULT_REGION, or what the endpoint's kind makes of it
	Style    Style  // empty = Auto

	Lock  Lock // empty = objects are not locked
	First bool // read the first version of each object, whatever came after it; write nothing

	Profile string // of the shared credentials file; empty = the usual chain
	CA      string // absolute name of a PEM file, in place of the system's authorities
}

// A bucket's name goes into host names and paths as it is.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// Parse takes a URL of a store apart; URL.md beside this file is its grammar.
// Parameters that it does not know are returned: the caller knows or refuses
// them. The error is ErrURL, in a sentence that does not repeat what may be a
// secret.
func Parse(raw string) (Config, url.Values, error) {
	fail := func(format string, args ...any) (Config, url.Values, error) {
		return Config{}, nil, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrURL)
	}
	rest, ok := strings.CutPrefix(raw, Scheme)
	if !ok {
		return fail("a bucket is named as %sBUCKET/PREFIX?endpoint=https://HOST:PORT", Scheme)
	}
	place, query, _ := strings.Cut(rest, "?")
	if strings.Contains(place, "@") {
		return fail("an %s URL holds no keys: take what stands before the @ out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or name a profile with profile=P", Scheme)
	}
	if strings.Contains(raw, "#") {
		return fail("an %s URL has no part behind a #: write a # inside a parameter as %%23", Scheme)
	}
	var c Config
	c.Bucket, c.Prefix, _ = strings.Cut(place, "/")
	c.Prefix = strings.TrimSuffix(c.Prefix, "/")
	switch {
	case c.Bucket == "":
		return fail("%q names no bucket: write %sBUCKET/PREFIX", Scheme+place, Scheme)
	case strings.Contains(c.Bucket, ":"):
		return fail("%q looks like a host: the bucket comes first and the host goes into endpoint=, as in %sBUCKET?endpoint=https://%s", c.Bucket, Scheme, c.Bucket)
	case !bucketName.MatchString(c.Bucket):
		return fail("%q is no bucket's name: that has 3 to 63 of a-z, 0-9, \"-\" and \".\", and begins and ends with a letter or digit", c.Bucket)
	case len(c.Prefix) > maxPrefix:
		return fail("the prefix has %d bytes: at most %d leave room for the names of objects", len(c.Prefix), maxPrefix)
	case c.Prefix != "" && objstore.CheckName(c.Prefix) != nil:
		return fail("%q is no prefix for objects: use parts of a-z, 0-9, \".\", \"_\" and \"-\" with one \"/\" between them", c.Prefix)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return fail("what follows the ? cannot be read: write NAME=VALUE&NAME=VALUE, and %%25 for a %%")
	}
	for name, v := range values {
		if len(v) > 1 {
			return fail("parameter %s is given %d times: give it once", name, len(v))
		}
		if secretName(name) {
			return fail("a URL holds no secrets: take %s out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or name a profile with profile=P", name)
		}
		if v[0] == "" {
			return fail("parameter %s is empty: give it a value or leave it out", name)
		}
	}
	take := func(name string) string {
		v := values.Get(name)
		values.Del(name)
		return v
	}
	if c.Endpoint, c.Insecure, err = parseEndpoint(take("endpoint")); err != nil {
		return Config{}, nil, err
	}
	c.Region, c.Profile, c.CA = take("region"), take("profile"), take("ca")
	c.Style, c.Lock = Style(take("style")), Lock(take("lock"))
	switch c.Style {
	case "":
		c.Style = Auto
	case Auto, Path, Host:
	default:
		return fail("style=%s is unknown: it is path, host or auto", c.Style)
	}
	if c.Lock != "" && c.Lock != Compliance && c.Lock != Governance {
		return fail("lock=%s is unknown: it is compliance or governance", c.Lock)
	}
	switch v := take("versions"); v {
	case "":
	case "first":
		c.First = true
	default:
		return fail("versions=%s is unknown: it is first", v)
	}
	if strings.ContainsFunc(c.Region, func(r rune) bool { return r <= ' ' || r == '/' || r == ',' || r > '~' }) {
		return fail("region=%q is no region: name it as the server does, such as eu-central-1", c.Region)
	}
	if c.CA != "" && c.Insecure {
		return fail("ca= says whom to trust over https, but the endpoint is http://: leave one of them out")
	}
	if c.CA != "" && !filepath.IsAbs(c.CA) {
		return fail("ca=%s is relative: give the whole path of the file with the certificates", c.CA)
	}
	return c, values, nil
}

// secretName tells parameters that someone may put a secret into.
func secretName(name string) bool {
	n := strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name))
	for _, part := range []string{"secret", "accesskey", "password", "token"} {
		if strings.Contains(n, part) {
			return true
		}
	}
	return false
}

// parseEndpoint reads the parameter endpoint=.
func parseEndpoint(raw string) (host string, insecure bool, err error) {
	fail := func(format string, args ...any) (string, bool, error) {
		return "", false, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrURL)
	}
	if raw == "" {
		return "", false, nil
	}
	if !strings.Contains(raw, "://") {
		return fail("endpoint=%s does not say how to speak to it: write endpoint=https://%s, or http:// for one without encryption", hideUser(raw), hideUser(raw))
	}
	u, err := url.Parse(raw)
	if err != nil {
		return fail("the endpoint cannot be read: write endpoint=https://HOST:PORT")
	}
	_, port, portErr := net.SplitHostPort(u.Host)
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fail("endpoint=%s://… is unknown: write endpoint=https://HOST:PORT, or http:// for one without encryption", u.Scheme)
	case u.User != nil:
		return fail("an endpoint holds no keys: take what stands before the @ out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or name a profile with profile=P")
	case u.Hostname() == "" || portErr == nil && port == "":
		return fail("the endpoint names no host: write endpoint=https://HOST:PORT")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
		return fail("the endpoint has a path: write only endpoint=%s://%s, the bucket goes before the ?", u.Scheme, u.Host)
	}
	return u.Host, u.Scheme == "http", nil
}

// hideUser cuts what may be a password.
func hideUser(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return s[i+1:]
	}
	return s
}

// String is the URL as people are shown it: where the store is, not how it is
// reached.
func (c Config) String() string {
	s := Scheme + c.Bucket
	if c.Prefix != "" {
		s += "/" + c.Prefix
	}
	if c.Endpoint == "" {
		return s
	}
	scheme := "https"
	if c.Insecure {
		scheme = "http"
	}
	return s + "?endpoint=" + scheme + "://" + c.Endpoint
}

// Overlaps reports whether one of two places lies in the other.
func (c Config) Overlaps(o Config) bool {
	if c.Bucket != o.Bucket || !strings.EqualFold(c.host(), o.host()) {
		return false
	}
	a, b := c.dir(), o.dir()
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// dir is what every key begins with.
func (c Config) dir() string {
	if c.Prefix == "" {
		return ""
	}
	return c.Prefix + "/"
}

func (c Config) host() string {
	if c.Endpoint == "" {
		return amazon
	}
	return c.Endpoint
}
