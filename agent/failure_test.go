package agent

import (
	"fmt"
	"testing"

	"github.com/cairnbackup/cairn/internal/repository"
)

// Stores that do not answer are a reason to come back, not a fault of the agent.
func TestTooFewStoresIsUnavailable(t *testing.T) {
	if e := asError(fmt.Errorf("delete: %w", repository.ErrTooFewStores)); e.Code != CodeUnavailable {
		t.Errorf("code %s", e.Code)
	}
}
