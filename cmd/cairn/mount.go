package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/fusefs"
	"github.com/cairnbackup/cairn/internal/repository"
)

func mountFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "allow-other", Usage: "let other users read what is mounted"},
	}
}

func mountCommand() *cli.Command {
	return leaf("mount", "DIR", "mount all backups, DIR/VOLUME/TIMESTAMP/disk.raw, until Ctrl-C or \"cairn umount\"",
		agentRepoFlags(mountFlags()...), withAgent(func(c *cli.Context, a *agent.Client) error {
			// A mount without an agent would be an empty folder with errors in it.
			if _, err := a.Status(c.Context); err != nil {
				return err
			}
			s, err := newExportSource(a, c.Args().First())
			if err != nil {
				return err
			}
			if err := s.sweep(c.Context); err != nil {
				return err
			}
			return serveMount(c, s)
		}))
}

func umountCommand() *cli.Command {
	return leaf("umount", "DIR", "end a mount of backups, also one whose process has died", []cli.Flag{
		&cli.BoolFlag{Name: "force", Usage: "also while files are open: their readers get errors"},
		outputFlag(),
	}, func(c *cli.Context) error {
		dir := c.Args().First()
		if err := fusefs.Unmount(c.Context, dir, c.Bool("force")); err != nil {
			return err
		}
		return emit(c, map[string]string{"unmounted": dir}, func(t *table) { t.row(dir + " is unmounted") })
	})
}

// serveMount mounts a source and stays until the end of the mount.
func serveMount(c *cli.Context, s fusefs.Source) error {
	dir := c.Args().First()
	complaints := &limiter{w: c.App.ErrWriter, every: time.Second}
	var announce error
	err := fusefs.Mount(c.Context, fusefs.Options{
		Dir: dir, Source: s, AllowOther: c.Bool("allow-other"), Failed: complaints.say,
	}, func() {
		announce = emit(c, map[string]string{"mounted": dir}, func(t *table) {
			t.row(fmt.Sprintf("backups are mounted on %s; Ctrl-C or \"cairn umount %s\" ends it", dir, dir))
		})
		if announce == nil {
			announce = notify("READY=1")
		}
	})
	if err != nil {
		return err
	}
	return announce
}

// repoMount mounts the backups of the stores themselves.
func repoMount(c *cli.Context, r *repository.Repository) error {
	return serveMount(c, &repositorySource{r: r})
}

// limiter prints errors, the same one not more often than every so often: a
// reader that tries again would fill the screen.
type limiter struct {
	w     io.Writer
	every time.Duration

	mu   sync.Mutex
	last string
	at   time.Time
}

func (l *limiter) say(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := err.Error(); text != l.last || time.Since(l.at) >= l.every {
		l.last, l.at = text, time.Now()
		fmt.Fprintf(l.w, "cairn: %s\n", clean(text))
	}
}
