package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/tcpdoor"
)

// tlsFiles are what NBD over TCP needs.
type tlsFiles struct {
	Cert     string `yaml:"tls-cert"`
	Key      string `yaml:"tls-key"`
	ClientCA string `yaml:"tls-client-ca"`
	Exports  string `yaml:"tls-exports"`
}

// tlsFlags are those of tlsFiles, in the same order.
var tlsFlags = []string{"tls-cert", "tls-key", "tls-client-ca", "tls-exports"}

func (f *tlsFiles) all() []*string { return []*string{&f.Cert, &f.Key, &f.ClientCA, &f.Exports} }

// tcpFlags are those of a command that serves NBD over TCP; what says what it serves.
func tcpFlags(what string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "nbd-listen", Usage: "serve " + what + " over TCP, too, on this `HOST:PORT`, with TLS and to clients with a certificate only; it takes the four --tls files"},
		&cli.StringFlag{Name: "nbd-url", Usage: "`URL` that clients reach that by, such as nbds://host1.example:10809 (the address of --nbd-listen, or this machine's name, if not given); the certificate has its name"},
		&cli.StringFlag{Name: "tls-cert", Usage: "`file` with the certificate for NBD over TCP in PEM, and those between it and the authority; this and the next three are read again when they are replaced"},
		&cli.StringFlag{Name: "tls-key", Usage: "`file` with its key"},
		&cli.StringFlag{Name: "tls-client-ca", Usage: "`file` with the authorities, in PEM, of which clients have to show a certificate"},
		&cli.StringFlag{Name: "tls-exports", Usage: "`file` in YAML that says which exports a certificate may use, a line for each common name: \"host-1: [vm1, 'db-*', 'web@ro']\""},
	}
}

// check refuses half of the settings; listening says whether there is an address, of
// this process or of one that it starts.
func (f *tlsFiles) check(listening bool) error {
	given := 0
	for i, name := range f.all() {
		switch {
		case *name == "":
		case !listening:
			return usagef("--%s is for NBD over TCP, and there is no address for that: give one with --nbd-listen HOST:PORT", tlsFlags[i])
		default:
			given++
		}
	}
	if listening && given < len(tlsFlags) {
		return usagef("NBD is served over TCP only with TLS and to clients that show a certificate: give --nbd-listen together with --tls-cert, --tls-key, --tls-client-ca and --tls-exports")
	}
	return nil
}

// open opens a door at listen, if that is not empty, and on the sockets that were
// inherited. It is nil if there are none; else the caller closes it.
func (f *tlsFiles) open(ctx context.Context, listen, at string, inherited []net.Listener, log *slog.Logger) (*tcpdoor.Settings, error) {
	if listen == "" && len(inherited) == 0 {
		if at != "" {
			return nil, usagef("--nbd-url is for NBD over TCP, and there is no address for that: give one with --nbd-listen HOST:PORT")
		}
		return nil, f.check(false)
	}
	if err := f.check(true); err != nil {
		return nil, err
	}
	conf, err := newReread("certificate for NBD over TCP", log, rereadEvery, f.tls, f.Cert, f.Key, f.ClientCA)
	if err != nil {
		return nil, usagef("the certificate for NBD over TCP cannot be used: %v", err)
	}
	grants, err := newReread("list of exports for certificates", log, rereadEvery, f.grants, f.Exports)
	if err != nil {
		return nil, err
	}
	s := &tcpdoor.Settings{
		Listeners: inherited,
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert,
			GetConfigForClient: conf.forHandshake,
		},
		Grants: func() tcpdoor.Grants { return grants.get(ctx) },
	}
	if listen != "" {
		var lc net.ListenConfig
		l, lerr := lc.Listen(ctx, "tcp", listen)
		if lerr != nil {
			return nil, usagef("NBD cannot be served on %s: %v", listen, lerr)
		}
		s.Listeners = append(s.Listeners, l)
	}
	s.Host, err = publicHost(at, s.Listeners[len(s.Listeners)-1].Addr())
	if err != nil {
		_ = s.Close() // nobody has used them
	}
	return s, err
}

// tcp opens the agent's door over TCP, if it has one.
func (s *agentSettings) tcp(ctx context.Context, inherited []net.Listener, log *slog.Logger) (*tcpdoor.Settings, error) {
	if s.ServeListen == "" {
		if s.ServeURL != "" {
			return nil, usagef("--serve-nbd-url is for NBD over TCP, and there is no address for that: give one with --serve-nbd-listen HOST:PORT")
		}
		return s.TLS.open(ctx, s.NBDListen, s.NBDURL, inherited, log)
	}
	if s.NoServe {
		return nil, usagef("--serve-nbd-listen is for a data plane that the agent starts, and --no-serve says that it starts none: give \"cairn serve\" --nbd-listen")
	}
	if err := s.TLS.check(true); err != nil {
		return nil, err
	}
	if s.NBDListen == "" && len(inherited) == 0 && s.NBDURL == "" {
		return nil, nil // the files are for the data plane
	}
	return s.TLS.open(ctx, s.NBDListen, s.NBDURL, inherited, log)
}

// serveTCP are the arguments for a data plane that this process starts.
func (s *agentSettings) serveTCP() []string {
	if s.ServeListen == "" {
		return nil
	}
	args := []string{"--nbd-listen", s.ServeListen}
	if s.ServeURL != "" {
		args = append(args, "--nbd-url", s.ServeURL)
	}
	for i, f := range s.TLS.all() {
		args = append(args, "--"+tlsFlags[i], *f)
	}
	return args
}

// tls reads the files. What it returns is used for every connection until they change.
func (f *tlsFiles) tls() (*tls.Config, error) {
	pair, err := loadKeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	pem, err := readSmall(f.ClientCA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate of an authority in PEM", f.ClientCA)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		SessionTicketsDisabled:      true, // a certificate is verified for each connection
		DynamicRecordSizingDisabled: true, // that is for browsers
	}, nil
}

// grants reads who may use what.
func (f *tlsFiles) grants() (tcpdoor.Grants, error) {
	g := tcpdoor.Grants{}
	if err := readYAML(f.Exports, &g); err != nil {
		return nil, err
	}
	if err := g.Check(); err != nil {
		return nil, usagef("settings file %s: %v", f.Exports, err)
	}
	return g, nil
}

// publicHost is the HOST:PORT of a URL, or else of an address that is listened on: where
// that is any, by the machine's name.
func publicHost(at string, addr net.Addr) (string, error) {
	if at != "" {
		u, err := url.Parse(at)
		if err != nil || u.Scheme != "nbds" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return "", usagef("--nbd-url %s: give nbds://HOST:PORT, by which clients reach this machine", at)
		}
		return u.Host, nil
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() && tcp.IP != nil {
		return addr.String(), nil
	}
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	return net.JoinHostPort(name, strconv.Itoa(tcp.Port)), nil
}
