package agent

import (
	"context"
	"time"
)

// idleTimeout is how long an idle connection is kept.
const idleTimeout = time.Minute

func run(ctx context.Context, o Options, ready func()) error {
	return nil
}
