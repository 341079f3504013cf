package nbd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const activatedVar = "CAIRN_TEST_ACTIVATED"

// TestActivated is what TestActivationListeners runs in a process of its own, as
// only that can be handed descriptors; by itself it does nothing.
func TestActivated(t *testing.T) {
	if os.Getenv(activatedVar) == "" {
		return
	}
	listeners, err := ActivationListeners()
	fmt.Println("error:", err)
	for _, l := range listeners {
		fmt.Println("listener:", l.Addr().Network(), l.Addr())
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is still there", name, v)
		}
	}
	if again, againErr := ActivationListeners(); again != nil || againErr != nil {
		t.Errorf("a second call got %v, %v", again, againErr)
	}
	out, err := exec.CommandContext(t.Context(), "ls", "-l", "/proc/self/fd").CombinedOutput()
	fmt.Printf("a child has %s, %v\n", out, err)
	for _, l := range listeners {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// activated runs TestActivated with some descriptors. pid and the others are the
// values of the variables; $$ is the process's own number.
func activated(t *testing.T, pid, count, names string, files ...*os.File) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c",
		`LISTEN_PID=`+pid+` LISTEN_FDS="$1" LISTEN_FDNAMES="$2" exec "$0" -test.run '^TestActivated$'`, os.Args[0], count, names)
	cmd.Env = append(os.Environ(), activatedVar+"=1")
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestActivationListeners(t *testing.T) {
	dir := t.TempDir()
	file := func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeQuietly(f) })
		return f
	}
	path := filepath.Join(dir, "nbd.sock")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(ul)
	tl, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(tl)
	datagram, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(datagram)
	connected, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(connected)
	unixFile, tcpFile, udpFile, connFile := file(ul.File()), file(tl.File()), file(datagram.File()), file(connected.File())
	plain := file(os.Create(filepath.Join(dir, "plain")))

	for _, test := range []struct {
		name, pid, count, names string
		files                   []*os.File
		want                    []string
		not                     string
	}{
		{"nothing", "", "", "", nil, []string{"error: <nil>"}, "listener:"},
		{"two", "$$", "2", "local:net", []*os.File{unixFile, tcpFile}, []string{"error: <nil>", "listener: unix " + path + "\nlistener: tcp " + tl.Addr().String(), "a child has total 0"}, "socket:"},
		{"one of two", "$$", "1", "", []*os.File{tcpFile, unixFile}, []string{"error: <nil>", "listener: tcp"}, "listener: unix"},
		{"of another process", "1", "1", "", []*os.File{unixFile}, []string{"error: <nil>"}, "listener:"},
		{"no number", "$$", "many", "", nil, []string{`LISTEN_FDS is "many"`}, "listener:"},
		{"a negative number", "$$", "-1", "", nil, []string{`LISTEN_FDS is "-1"`}, "listener:"},
		{"a huge number", "$$", "99999999", "", nil, []string{`LISTEN_FDS is "99999999"`}, "listener:"},
		{"datagrams", "$$", "2", "a:b.socket", []*os.File{unixFile, udpFile}, []string{"descriptor 4 (b.socket) does not listen for streams"}, "listener:"},
		{"a connection", "$$", "1", "", []*os.File{connFile}, []string{"descriptor 3 does not listen for streams"}, "listener:"},
		{"a file", "$$", "1", "x", []*os.File{plain}, []string{"descriptor 3 (x) is no socket"}, "listener:"},
		{"less than promised", "$$", "2", "", []*os.File{unixFile}, []string{"descriptor 4"}, "listener:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := activated(t, test.pid, test.count, test.names, test.files...)
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if test.not != "" && strings.Contains(out, test.not) {
				t.Errorf("there is %q in\n%s", test.not, out)
			}
		})
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a child that closed its listener removed the socket: %v", err)
	}
}
