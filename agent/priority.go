package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The agent works behind the guests: nice 10, and the lowest of the eight
// levels of the best-effort class for disks.
const (
	niceLevel    = 10
	ioprioWho    = 1         // a thread
	ioprioLowest = 2<<13 | 7 // class best-effort, level 7
)

// lowerPriority puts this process behind others. On Linux both priorities are
// a thread's, and threads inherit them from the one that starts them: after
// two rounds no thread is left that an unlowered one could have started.
func lowerPriority(ctx context.Context, log *slog.Logger) {
	var failure error
	for range 2 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			failure = err
			break
		}
		for _, t := range tasks {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, niceLevel); err != nil && !errors.Is(err, unix.ESRCH) {
				failure = err
			}
			if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWho, uintptr(id), ioprioLowest); e != 0 && e != unix.ESRCH {
				failure = e
			}
		}
	}
	if failure != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "priority not lowered: guests may notice backups", slog.Any("error", failure))
	}
}
