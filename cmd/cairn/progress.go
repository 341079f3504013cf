package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows progress on a terminal: bytes, rate, time left. Elsewhere it shows
// nothing.
type bar struct {
	w   io.Writer
	pb  *progressbar.ProgressBar
	tty bool
}

func newBar(w io.Writer) *bar {
	f, ok := w.(*os.File)
	return &bar{w: w, tty: ok && term.IsTerminal(int(f.Fd()))}
}

// show draws the state. Calls must not overlap.
func (b *bar) show(what string, done, total int64) {
	if !b.tty || total <= 0 {
		return
	}
	if b.pb == nil {
		b.pb = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetWidth(20),
			progressbar.OptionClearOnFinish(),
		)
	}
	if total != b.pb.GetMax64() {
		b.pb.ChangeMax64(total)
	}
	b.pb.Describe(what)
	// A bar that cannot be drawn is no reason to fail a backup. The last byte
	// is left out: the bar would end, and there is still a commit to come.
	_ = b.pb.Set64(min(done, total-1))
}

// end removes the bar.
func (b *bar) end() {
	if b.pb != nil {
		_ = b.pb.Clear()
	}
}
