package main

import (
	"bytes"
	"context"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// shelf is exports that nobody opens.
type shelf []string

func (s shelf) Export(name string) (tcpdoor.Export, bool) {
	for e := range s.Exports() {
		if e.Name == name {
			return e, true
		}
	}
	return tcpdoor.Export{}, false
}

func (s shelf) Exports() iter.Seq[tcpdoor.Export] {
	return func(yield func(tcpdoor.Export) bool) {
		for _, name := range s {
			if !yield(tcpdoor.Export{Export: &nbd.Export{Name: name, Size: func() int64 { return 0 }}}) {
				return
			}
		}
	}
}

// safeLog collects what several goroutines log.
type safeLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *safeLog) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// writeFile puts a file in the place of another.
func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	move(t, name+".new", name)
}

// testFiles are the files of a door, in a new folder.
func testFiles(t *testing.T, ca *tlstest.Authority, exports string) tlsFiles {
	t.Helper()
	dir := t.TempDir()
	ca.WriteServer(dir)
	f := tlsFiles{
		Cert: filepath.Join(dir, tlstest.ServerCert), Key: filepath.Join(dir, tlstest.ServerKey),
		ClientCA: filepath.Join(dir, tlstest.CA), Exports: filepath.Join(dir, "exports.yaml"),
	}
	writeFile(t, f.Exports, exports)
	return f
}

// What is replaced on disk counts for the next client; what cannot be used does not, and
// is logged once.
func TestDoorFilesAreReadAgain(t *testing.T) {
	was := rereadEvery
	rereadEvery = 0
	defer func() { rereadEvery = was }()
	ca, other := tlstest.New(t), tlstest.New(t)
	f := testFiles(t, ca, "alice: [vm1]\nbob: [\"db-*\"]\n")
	var log safeLog
	s, err := f.open(t.Context(), "127.0.0.1:0", "", nil, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- tcpdoor.New(s, shelf{"db-1", "db-2", "vm1"}, slog.New(slog.DiscardHandler)).Serve(ctx)
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	// sees is what a client of an authority sees; "nothing" if it is not let in.
	sees := func(ca *tlstest.Authority, name, want string) {
		t.Helper()
		got := "nothing"
		l, lerr := nbd.List(ctx, nbd.URI(tlstest.Proxy(t, s.Listen(), "127.0.0.1", ca.ClientConfig(name)), ""))
		if lerr == nil {
			var names []string
			for _, e := range l {
				names = append(names, e.Name)
			}
			got = strings.Join(names, " ")
		}
		if got != want {
			t.Errorf("%s sees %q, want %q (%v)", name, got, want, lerr)
		}
	}
	failed := func(want int) {
		t.Helper()
		if got := log.count("cannot be used"); got != want {
			t.Errorf("%d lines about files that cannot be used, want %d:\n%s", got, want, log.b.String())
		}
	}
	sees(ca, "alice", "vm1")
	sees(ca, "bob", "db-1 db-2")
	sees(other, "alice", "nothing")

	writeFile(t, f.Exports, "alice: [db-2, vm1]\n")
	sees(ca, "alice", "db-2 vm1")
	sees(ca, "bob", "")
	failed(0)
	for _, broken := range []string{"", "alice: vm1\n", "alice: ['vm[1']\n", "alice: [vm1"} {
		writeFile(t, f.Exports, broken)
		sees(ca, "alice", "db-2 vm1")
		sees(ca, "alice", "db-2 vm1")
	}
	failed(4)
	if err := os.Remove(f.Exports); err != nil {
		t.Fatal(err)
	}
	sees(ca, "alice", "db-2 vm1")
	writeFile(t, f.Exports, "bob: [vm1]\n")
	sees(ca, "bob", "vm1")
	failed(5)

	writeFile(t, f.ClientCA, "no certificate")
	sees(ca, "bob", "vm1")
	sees(other, "bob", "nothing")
	failed(6)
	other.WriteServer(filepath.Dir(f.Cert)) // the authority, too
	sees(other, "bob", "vm1")
	sees(ca, "bob", "nothing")
	failed(6)
}

func TestDoorSettings(t *testing.T) {
	ca := tlstest.New(t)
	good := testFiles(t, ca, "alice: [vm1]\n")
	var none tlsFiles
	with := func(edit func(f *tlsFiles)) tlsFiles {
		f := good
		edit(&f)
		return f
	}
	bad := func(text string) tlsFiles {
		name := filepath.Join(t.TempDir(), "exports.yaml")
		writeFile(t, name, text)
		return with(func(f *tlsFiles) { f.Exports = name })
	}
	pipe := filepath.Join(t.TempDir(), "pipe") // that nobody writes to
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	const alone, together = "there is no address for that: give one with --nbd-listen", "NBD is served over TCP only with TLS and to clients that show a certificate: give --nbd-listen together with"
	for _, tt := range []struct {
		name   string
		files  tlsFiles
		listen string
		url    string
		want   string // "" = it is a door, "-" = there is none
	}{
		{"nothing", none, "", "", "-"},
		{"all", good, "127.0.0.1:0", "", ""},
		{"a URL", good, "127.0.0.1:0", "nbds://host.example:77/", ""},
		{"no files", none, "127.0.0.1:0", "", together},
		{"no authority", with(func(f *tlsFiles) { f.ClientCA = "" }), "127.0.0.1:0", "", together},
		{"no exports", with(func(f *tlsFiles) { f.Exports = "" }), "127.0.0.1:0", "", together},
		{"no address", good, "", "", "--tls-cert is for NBD over TCP, and " + alone},
		{"a URL alone", none, "", "nbds://x", "--nbd-url is for NBD over TCP, and " + alone},
		{"not a URL", good, "127.0.0.1:0", "host.example", "--nbd-url host.example: give nbds://HOST:PORT"},
		{"a URL with a path", good, "127.0.0.1:0", "nbds://host/vm1", "give nbds://HOST:PORT"},
		{"an address of nobody's", good, "192.0.2.1:1", "", "NBD cannot be served on 192.0.2.1:1: "},
		{"no certificate there", with(func(f *tlsFiles) { f.Cert = f.Exports }), "127.0.0.1:0", "", "the certificate for NBD over TCP cannot be used: "},
		{"another key", with(func(f *tlsFiles) { f.Key = testFiles(t, ca, "a: [b]\n").Key }), "127.0.0.1:0", "", "the certificate for NBD over TCP cannot be used: "},
		{"no authority there", with(func(f *tlsFiles) { f.ClientCA = f.Exports }), "127.0.0.1:0", "", "has no certificate of an authority in PEM"},
		{"a pipe as certificate", with(func(f *tlsFiles) { f.Cert = pipe }), "127.0.0.1:0", "", "pipe is no regular file: name one"},
		{"a pipe as key", with(func(f *tlsFiles) { f.Key = pipe }), "127.0.0.1:0", "", "pipe is no regular file: name one"},
		{"an authority without end", with(func(f *tlsFiles) { f.ClientCA = "/dev/zero" }), "127.0.0.1:0", "", "/dev/zero is no regular file: name one"},
		{"no list", with(func(f *tlsFiles) { f.Exports += "x" }), "127.0.0.1:0", "", "no such file"},
		{"an empty list", bad(""), "127.0.0.1:0", "", "nobody is named: give a line for each certificate"},
		{"no list of names", bad("alice: vm1\n"), "127.0.0.1:0", "", "line 1: string was used where sequence is expected"},
		{"no map", bad("- vm1\n"), "127.0.0.1:0", "", "line 1: "},
		{"twice", bad("alice: [vm1]\nalice: [vm2]\n"), "127.0.0.1:0", "", "line 2: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := tt.files.open(t.Context(), tt.listen, tt.url, nil, slog.New(slog.DiscardHandler))
			if cerr := s.Close(); cerr != nil {
				t.Error(cerr)
			}
			switch {
			case tt.want == "" && err == nil && s != nil, tt.want == "-" && err == nil && s == nil:
			case tt.want == "" || tt.want == "-":
				t.Errorf("%v, %v", s, err)
			case err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n"):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestPublicHost(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ url, listen, want string }{
		{"", "127.0.0.1:7", "127.0.0.1:7"},
		{"", "[2001:db8::1]:7", "[2001:db8::1]:7"},
		{"", "0.0.0.0:7", host + ":7"},
		{"", "[::]:7", host + ":7"},
		{"nbds://host.example", "0.0.0.0:7", "host.example"},
		{"nbds://host.example:77", "0.0.0.0:7", "host.example:77"},
	} {
		addr, err := net.ResolveTCPAddr("tcp", tt.listen)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := publicHost(tt.url, addr); err != nil || got != tt.want {
			t.Errorf("%q on %s: %q, %v, want %q", tt.url, tt.listen, got, err, tt.want)
		}
	}
}
