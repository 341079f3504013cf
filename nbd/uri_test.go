package nbd

import (
	"strings"
	"testing"
)

func TestURI(t *testing.T) {
	host := func(h string) trust { return trust{hostname: h} }
	for _, test := range []struct {
		uri  string
		want endpoint
	}{
		{"nbd+unix:///vm?socket=/run/a.sock", endpoint{network: "unix", address: "/run/a.sock", export: "vm"}},
		{"nbd+unix:///?socket=/run/a%20b", endpoint{network: "unix", address: "/run/a b"}},
		{"nbd+unix://?socket=x", endpoint{network: "unix", address: "x"}},
		{"nbd://host", endpoint{network: "tcp", address: "host:10809", trust: host("host")}},
		{"nbd://[::1]:99/a/b%2Fc", endpoint{network: "tcp", address: "[::1]:99", export: "a/b/c", trust: host("::1")}},
		{URI("/run/x&y=z #.sock", "vm@ro ?/é"), endpoint{network: "unix", address: "/run/x&y=z #.sock", export: "vm@ro ?/é"}},
		{URI("/s", "/abs"), endpoint{network: "unix", address: "/s", export: "/abs"}},
		{URI("/s", ""), endpoint{network: "unix", address: "/s"}},
		{"nbds://host/vm", endpoint{network: "tcp", address: "host:10809", export: "vm", tls: true, trust: host("host")}},
		{
			"nbds://user@host:1/vm?tls-certificates=/etc/pki/nbd&tls-verify-peer=1&tls-type=x509",
			endpoint{network: "tcp", address: "host:1", export: "vm", tls: true, trust: trust{certificates: "/etc/pki/nbd", hostname: "host"}},
		},
		{"nbds://10.0.0.1/?tls-hostname=store", endpoint{network: "tcp", address: "10.0.0.1:10809", tls: true, trust: host("store")}},
		{"nbds+unix:///vm?socket=/s&tls-hostname=store", endpoint{network: "unix", address: "/s", export: "vm", tls: true, trust: host("store")}},
		{"nbds+unix:///vm?socket=/s&tls-verify-peer=0", endpoint{network: "unix", address: "/s", export: "vm", tls: true, trust: trust{unverified: true}}},
	} {
		if got, err := parseURI(test.uri); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.uri, got, err, test.want)
		}
	}
	for _, test := range []struct{ uri, want string }{
		{"", "scheme"},
		{"disk", "scheme"},
		{"http://x/", "scheme"},
		{"nbd:///x", "names no host"},
		{"nbds:///x", "names no host"},
		{"nbd+unix:///x", "names no socket"},
		{"nbd://h\x7f", "not a URI"},
		{"nbd://h/" + strings.Repeat("n", maxName+1), "4097 bytes long"},
		{"nbd://h/x?socket=/s", `"socket", which is not known`},
		{"nbd+unix:///x?socket=/s&socket=/t", "more than once"},
		{"nbd+unix:///x?socket=/s&export=y", `"export", which is not known`},
		{"nbd+unix:///x?socket=/s&a;b", "malformed query"},
		{"nbd://h/x?tls-certificates=/pki", "use nbds"},
		{"nbd+unix:///x?socket=/s&tls-hostname=h", "use nbds+unix"},
		{"nbds+unix:///x?socket=/s", "add tls-hostname"},
		{"nbds://h/x?tls-verify-peer=maybe", "0 or 1"},
		{"nbds://h/x?tls-type=psk", "x509 only"},
		{"nbds://h/x?tls-psk-file=/f", "not known"},
		{"nbds://h/x?tls-certificates=", "without a value"},
	} {
		if e, err := parseURI(test.uri); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q became %+v, %v; want something of %q", test.uri, e, err, test.want)
		}
	}
	if got := URI("/run/vm.sock", "vm"); got != "nbd+unix:///vm?socket=/run/vm.sock" {
		t.Error(got)
	}
}

// What is taken for a URI can be dialed, whatever else was in it.
func FuzzURI(f *testing.F) {
	f.Add("nbd://[::1]:99/a/b%2Fc")
	f.Add("nbd+unix:///vm?socket=/run/a.sock")
	f.Add("nbds+unix:///vm?socket=/s&tls-hostname=h&tls-certificates=/d&tls-verify-peer=0")
	f.Fuzz(func(t *testing.T, uri string) {
		e, err := parseURI(uri)
		if err != nil {
			return
		}
		if e.address == "" || len(e.export) > maxName || e.network != "tcp" && e.network != "unix" {
			t.Errorf("%q became %+v", uri, e)
		}
		if e.tls != strings.HasPrefix(strings.ToLower(uri), "nbds") || e.tls && e.trust.hostname == "" && !e.trust.unverified {
			t.Errorf("%q became %+v", uri, e)
		}
		if !e.tls && (e.trust.unverified || e.trust.certificates != "") {
			t.Errorf("%q would be sent in plain text", uri)
		}
	})
}
