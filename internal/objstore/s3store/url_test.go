package s3store_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/s3store"
)

func TestParse(t *testing.T) {
	tests := []struct {
		url  string
		want s3store.Config
		text string // what people see
	}{
		{"s3://abc", s3store.Config{Bucket: "abc", Style: s3store.Auto}, "s3://abc"},
		{"s3://abc/", s3store.Config{Bucket: "abc", Style: s3store.Auto}, "s3://abc"},
		{
			"s3://my.bucket/a/b-c/?endpoint=https://s3.example.com:9000&region=eu-1&style=path&profile=p&ca=/etc/ca.pem",
			s3store.Config{Bucket: "my.bucket", Prefix: "a/b-c", Endpoint: "s3.example.com:9000", Region: "eu-1", Style: s3store.Path, Profile: "p", CA: "/etc/ca.pem"},
			"s3://my.bucket/a/b-c?endpoint=https://s3.example.com:9000",
		},
		{
			"s3://abc?endpoint=http%3A%2F%2F127.0.0.1%3A9000%2F&style=host",
			s3store.Config{Bucket: "abc", Endpoint: "127.0.0.1:9000", Insecure: true, Style: s3store.Host},
			"s3://abc?endpoint=http://127.0.0.1:9000",
		},
		{
			"s3://abc?endpoint=https://[::1]:9000",
			s3store.Config{Bucket: "abc", Endpoint: "[::1]:9000", Style: s3store.Auto},
			"s3://abc?endpoint=https://[::1]:9000",
		},
	}
	for _, tt := range tests {
		c, rest, err := s3store.Parse(tt.url)
		if err != nil || c != tt.want || len(rest) > 0 || c.String() != tt.text {
			t.Errorf("Parse(%s) = %+v, %v, %v; String %s", tt.url, c, rest, err, c)
		}
		// What people see names the same place.
		again, _, err := s3store.Parse(c.String())
		if err != nil || again.String() != c.String() || !again.Overlaps(c) {
			t.Errorf("Parse(%s) = %+v, %v", c, again, err)
		}
	}
	_, rest, err := s3store.Parse("s3://abc?bandwidth=1MiB")
	if err != nil || rest.Get("bandwidth") != "1MiB" {
		t.Errorf("parameters of others: %v, %v", rest, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for url, sentence := range map[string]string{
		"":                               "named as s3://BUCKET",
		"/srv/a":                         "named as s3://BUCKET",
		"s3://":                          "names no bucket",
		"s3:///prefix":                   "names no bucket",
		"s3://?endpoint=https://h":       "names no bucket",
		"s3://AB":                        "no bucket's name",
		"s3://ab":                        "no bucket's name",
		"s3://a_b_c":                     "no bucket's name",
		"s3://-abc":                      "no bucket's name",
		"s3://h.example.com:9000/bucket": "looks like a host",
		"s3://abc//x":                    "no prefix",
		"s3://abc/../x":                  "no prefix",
		"s3://abc/X":                     "no prefix",
		"s3://abc/%61":                   "no prefix",
		"s3://abc/" + strings.Repeat("abcdefg/", 60):                "at most 400",
		"s3://key:hush@abc":                                         "holds no keys",
		"s3://hush@abc?endpoint=https://h":                          "holds no keys",
		"s3://abc#hush":                                             "behind a #",
		"s3://abc?endpoint=https://key:hush@h":                      "holds no keys",
		"s3://abc?endpoint=key:hush@h":                              "does not say how to speak",
		"s3://abc?endpoint=h:9000":                                  "write endpoint=https://h:9000",
		"s3://abc?endpoint=ftp://h":                                 "is unknown",
		"s3://abc?endpoint=https://":                                "names no host",
		"s3://abc?endpoint=https://:9000":                           "names no host",
		"s3://abc?endpoint=https://h:":                              "names no host",
		"s3://abc?endpoint=https://h/abc":                           "has a path",
		"s3://abc?endpoint=https://h:x":                             "cannot be read",
		"s3://abc?endpoint=":                                        "is empty",
		"s3://abc?region":                                           "is empty",
		"s3://abc?region=a&region=b":                                "2 times",
		"s3://abc?region=a%20b":                                     "is no region",
		"s3://abc?style=virtual":                                    "path, host or auto",
		"s3://abc?lock=yes":                                         "compliance or governance",
		"s3://abc?versions=all":                                     "it is first",
		"s3://abc?ca=ca.pem":                                        "is relative",
		"s3://abc?ca=/ca.pem&endpoint=http://h":                     "leave one of them out",
		"s3://abc?secret=hush":                                      "holds no secrets",
		"s3://abc?aws_secret_access_key=hush":                       "holds no secrets",
		"s3://abc?access-key=hush":                                  "holds no secrets",
		"s3://abc?endpoint=https://h&session_token=hush&region=abc": "holds no secrets",
		"s3://abc?a=%zz":                                            "cannot be read",
	} {
		_, _, err := s3store.Parse(url)
		if !errors.Is(err, s3store.ErrURL) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("Parse(%s) = %v, want %q", url, err, sentence)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("Parse(%s) tells the secret: %v", url, err)
		}
	}
}

func TestOverlaps(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"s3://abc", "s3://abc", true},
		{"s3://abc", "s3://abc/p", true},
		{"s3://abc/p/q", "s3://abc/p", true},
		{"s3://abc/p", "s3://abc/pq", false},
		{"s3://abc/p", "s3://abd/p", false},
		{"s3://abc", "s3://abc?endpoint=https://h", false},
		{"s3://abc?endpoint=https://h&region=x", "s3://abc?endpoint=https://H", true},
	}
	for _, tt := range tests {
		a, _, err := s3store.Parse(tt.a)
		b, _, err2 := s3store.Parse(tt.b)
		if err != nil || err2 != nil || a.Overlaps(b) != tt.want || b.Overlaps(a) != tt.want {
			t.Errorf("%s and %s overlap: %v, want %v (%v, %v)", tt.a, tt.b, a.Overlaps(b), tt.want, err, err2)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("s3://abc/p?endpoint=https://h:1&region=r&style=path&ca=/x&profile=p")
	f.Add("s3://u:p@abc?endpoint=http://u:p@h")
	f.Fuzz(func(t *testing.T, raw string) {
		c, _, err := s3store.Parse(raw)
		if err != nil {
			if !errors.Is(err, s3store.ErrURL) {
				t.Fatal(err)
			}
			return
		}
		again, rest, err := s3store.Parse(c.String())
		if err != nil || len(rest) > 0 || again.String() != c.String() {
			t.Fatalf("%q: %q: %v", raw, c, err)
		}
	})
}
