package protocol

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/protocol/explore"
)

// Every order of the steps of one who rotates, others that have its key, and one who
// gives the rotation up: it is done or given up, never both, nobody writes under a key
// that was given up, and no writer misses a rotation that was done.
func TestRotation(t *testing.T) {
	for _, m := range []Rotation{
		{Stores: 1, DataShards: 1},
		{Stores: 2, DataShards: 1, Lost: 1},
		{Stores: 3, DataShards: 1, Lost: 2},
		{Stores: 3, DataShards: 2, Lost: 1},
		{Stores: 4, DataShards: 2, Lost: 2},
		{Stores: 5, DataShards: 3, Lost: 2},
	} {
		r := explore.Run(m, m.Start(), limit(t))
		t.Logf("%d stores, k=%d: %s", m.Stores, m.DataShards, r)
		if r.Violation != "" || r.Truncated {
			t.Errorf("%+v: %s\n%s", m, r, strings.Join(r.Trace, "\n"))
		}
	}
}

// Each of its rules is needed.
func TestRotationMutations(t *testing.T) {
	for _, tt := range []struct {
		left RotationMutation
		want string
	}{
		{PublishedByFewer, "begins under the old key"},
		{FollowedUnseen, "written under a key that was given up"},
		{BeginAsksFewer, "begins under the old key"},
		{GivenUpWithoutName, "shuts other passwords out"},
		{GivenUpOnSome, "shuts other passwords out"},
		{LostStayMembers, "shuts other passwords out"},
	} {
		t.Run(fmt.Sprint(tt.left), func(t *testing.T) {
			m := Rotation{Stores: 4, DataShards: 2, Lost: 2, Mutation: tt.left}
			r := explore.Run(m, m.Start(), limit(t))
			t.Logf("%s\n%s", r, strings.Join(r.Trace, "\n"))
			if !strings.Contains(r.Violation, tt.want) {
				t.Errorf("%s, want %q", r, tt.want)
			}
		})
	}
}
