package repository

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// endless returns a payload of one element over and over.
func endless(head, element, tail string) []byte {
	const long = 8 << 20
	return []byte(head + strings.Repeat(element, (long-len(head)-len(tail))/len(element)) + tail)
}

// What a store makes up takes no more memory than its bytes, whether nothing of it is
// authenticated or somebody who had an older key made it.
func TestMadeUpMembershipTakesNoMemory(t *testing.T) {
	c, r := fresh(t)
	mustRotate(t, r)
	for _, tt := range []struct {
		name    string
		payload []byte
	}{
		{"rotations", endless(`{"sealing":[{}`, `,{}`, `]}`)},
		{"no rotations", endless(`{"sealing":[null`, `,null`, `]}`)},
		{"placements", endless(`{"placements":[{}`, `,{}`, `]}`)},
		{"slots", endless(`{"placements":[{"slots":[0`, `,0`, `]}]}`)},
		{"stores", endless(`{"stores":[1`, `,1`, `]}`)},
		{"fields", endless(`{"version":1`, `,"sealing":[{},{},{},{}]`, `}`)},
		{"a string", endless(`{"proof":"`, `AAAA`, `"}`)},
		{"a string of escapes", endless(`{"proof":"`, `\"`, `"}`)},
		{"a number", endless(`{"version":1`, `0`, `}`)},
		{"blanks", endless(`{`, ` `, `}`)},
		{"lists in lists", endless(`{"x":`, `[`, `}`)},
		{"ends of lists", endless(`{"x":1`, `]`, `}`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			object, err := r.keys.sealEnvelope(kindMembers, membersName(9), tt.payload)
			if err != nil {
				t.Fatal(err)
			}
			const most = 2 << 20
			for what, parse := range map[string]func() error{
				"claim":   func() error { _, err := claim(object); return err },
				"genuine": func() error { _, err := r.keys.openMembership(membersName(9), object); return err },
			} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := parse()
				runtime.ReadMemStats(&after)
				if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, errEnvelope) || took > most {
					t.Errorf("%s: %d KiB, %v", what, took>>10, err)
				}
			}
			c.mem[2].Replace(membersName(9), object)
		})
	}
	if err := openWith(t, c, string(password)); err != nil {
		t.Error(err)
	}
}

// The largest membership that there can be is opened: all placements, most stores, most
// rotations.
func TestLargestMembership(t *testing.T) {
	c, r := fresh(t)
	mustRotate(t, r)
	m := r.membership().next()
	for len(m.Placements) < maxPlacements {
		m.Placements = append(m.Placements, placement{Epoch: uint16(len(m.Placements)), Slots: slices.Clone(m.Placements[0].Slots)})
	}
	for len(m.Stores) < 1024 {
		id, err := newIdent()
		if err != nil {
			t.Fatal(err)
		}
		m.Stores = append(m.Stores, id)
	}
	name, object, err := r.keys.sealMembership(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = claim(object); err != nil {
		t.Error(err)
	}
	c.mem[3].Replace(name, object)
	if got := c.open(t).membership(); len(got.Placements) != maxPlacements || len(got.Stores) != 1024 {
		t.Errorf("%d placements, %d stores", len(got.Placements), len(got.Stores))
	}
	// And with all rotations that there can be, each text as long as it gets.
	most := sealingRecord{First: 1<<16 - 1, Began: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.FixedZone("", 14*3600)), Nonce: m.Sealing[0].Nonce, Previous: m.Sealing[0].Previous, Check: m.Sealing[0].Check}
	m.Sealing = nil
	for len(m.Sealing) < maxEpochs-1 {
		m.Sealing = append(m.Sealing, most)
	}
	if _, _, err = r.keys.sealMembership(m); !errors.Is(err, errEpoch) {
		t.Fatal(err) // nobody has these keys
	}
	payload, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if object, err = r.keys.sealEnvelope(kindMembers, name, payload); err != nil {
		t.Fatal(err)
	}
	if got, err := claim(object); err != nil || got.epochs() != maxEpochs-1 || got.Version != m.Version {
		t.Errorf("%v, %v", got, err)
	}
}

// What is bounded is what is nested, not what is written in strings.
func TestBoundJSON(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"a":1,"b":2}`:                           true,
		`{"a":1,"b":2,"c":3}`:                     false,
		`{"a":[1,2,3],"b":[1,2,3]}`:               true,
		`{"a":[1,2,3,4]}`:                         false,
		`{"a":[[1]]}`:                             false,
		`{"a":"[[[[,,,,{{{"}`:                     true,
		`{"a":"\"[[[,,,,"}`:                       true,
		`{"a":"\\",",":[1,2,3]}`:                  true,
		`{"a":"\\",",":[1,2,3,4]}`:                false,
		`]`:                                       false,
		strings.Repeat("1", maxJSONToken):         true,
		strings.Repeat("1", maxJSONToken) + "1":   false,
		fmt.Sprintf(`{"a":%512s}`, `"`):           false,
		fmt.Sprintf(`{"a":[%s,%s]}`, long(), "1"): true,
	} {
		if err := boundJSON([]byte(text), []int{2, 3}); (err == nil) != ok {
			t.Errorf("%.60s: %v", text, err)
		}
	}
}

func long() string { return strings.Repeat("1", maxJSONToken-1) }
