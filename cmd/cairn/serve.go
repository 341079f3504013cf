package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/serve"
)

// The data plane's budget is 64 MiB of memory and 4 MiB for each TiB of
// volumes. The collector runs at half the usual growth, and harder towards the
// limit, which is set below the budget: not all memory is the heap's.
const (
	serveMemory    = 48 << 20
	serveMemoryTiB = 3 << 20
	serveGCPercent = 50
)

func serveCommand() *cli.Command {
	return leaf("serve", "", "run the data plane alone: volumes, change tracking, snapshots, NBD", append([]cli.Flag{
		stateFlag(),
		controlFlag(),
		nbdDirFlag(),
		&cli.StringFlag{Name: "group", Usage: "`group` that may connect to the NBD sockets"},
		logLevelFlag(),
		logFormatFlag(),
	}, tcpFlags("volumes and snapshots")...), func(c *cli.Context) error {
		log, err := newLogger(c.App.ErrWriter, c.String("log-level"), c.String("log-format"))
		if err != nil {
			return err
		}
		setServeMemory(0)
		setServePlaces()
		in, err := takeInherited()
		if err != nil {
			return err
		}
		o := serve.Options{
			State: c.String("state"), Control: in.path(c.String("control")), NBDDir: c.String("nbd-dir"),
			Group: c.String("group"), Logger: log, Version: version, Inherited: in.requests,
		}
		var files tlsFiles
		for i, f := range files.all() {
			*f = c.String(tlsFlags[i])
		}
		if o.TCP, err = files.open(c.Context, c.String("nbd-listen"), c.String("nbd-url"), in.tcp, log); err != nil {
			return err
		}
		watch, stop := context.WithCancel(c.Context)
		done := make(chan struct{})
		defer func() { stop(); <-done }()
		go func() { defer close(done); watchMemory(watch, o.Control) }()
		return serve.Run(c.Context, o, func() { ready(c.Context, log) })
	})
}

// servePlaces is how many more goroutines run Go code or short system calls at once than
// there are processors. Only one that finds nothing to run looks which connections have
// something to read; so while as many copy for a snapshot as there are processors, guests
// would wait until one of them is done. With places left over they compete for a
// processor, which the kernel shares out fairly.
const servePlaces = 8

// setServePlaces leaves the number as it is where somebody gave one, and where a control
// group has the process use fewer processors than there are: who spends its share on
// many at once stands still until the next period.
func setServePlaces() {
	if n := runtime.GOMAXPROCS(0); os.Getenv("GOMAXPROCS") == "" && n == runtime.NumCPU() {
		runtime.GOMAXPROCS(n + servePlaces)
	}
}

func setServeMemory(volumes int64) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(serveGCPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(serveMemory + serveMemoryTiB*((volumes+1<<40-1)>>40))
	}
}

// watchMemory lets the memory limit follow the size of the volumes.
func watchMemory(ctx context.Context, control string) {
	client := serve.NewClient(control)
	defer client.Close()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		vols, err := client.Volumes(ctx)
		if err != nil {
			continue // while it starts or stops
		}
		var sum int64
		for _, v := range vols {
			sum += v.Size
		}
		setServeMemory(sum)
	}
}
