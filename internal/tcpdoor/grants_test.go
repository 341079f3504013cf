package tcpdoor

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestGrants(t *testing.T) {
	g := Grants{
		"exact":  {"vm1", "vm2@ro", "vm3@monday"},
		"prefix": {"db-*"},
		"reader": {"db-*@ro"},
		"deep":   {"db-*@*"},
		"all":    {"*", "*@*"},
		"odd":    {"vm[12]", "x?"},
		"none":   {},
	}
	if err := g.Check(); err != nil {
		t.Fatal(err)
	}
	exports := []string{"vm1", "vm1@ro", "vm1@monday", "vm2", "vm2@ro", "vm3", "vm3@monday", "db-", "db-a", "db-a@ro", "db-a@monday", "xy", ""}
	for client, want := range map[string]string{
		"exact":   "vm1 vm2@ro vm3@monday",
		"prefix":  "db- db-a",
		"reader":  "db-a@ro",
		"deep":    "db-a@ro db-a@monday",
		"all":     "vm1 vm1@ro vm1@monday vm2 vm2@ro vm3 vm3@monday db- db-a db-a@ro db-a@monday xy ",
		"odd":     "vm1 vm2 xy",
		"none":    "",
		"unknown": "",
		"":        "",
	} {
		var got []string
		for _, e := range exports {
			if g.allow(client, e) {
				got = append(got, e)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", client, strings.Join(got, " "), want)
		}
	}
}

func TestGrantsAreChecked(t *testing.T) {
	for _, tt := range []struct {
		g    Grants
		want string
	}{
		{nil, "nobody is named"},
		{Grants{}, "nobody is named"},
		{Grants{"": {"vm1"}}, "without a name"},
		{Grants{"a": {"vm1", ""}}, `export of certificate "a" has no name`},
		{Grants{"a": {"vm[1"}}, `"vm[1" of certificate "a" is malformed`},
		{Grants{"a": {"vm@[1"}}, "is malformed"},
		{Grants{"a": {"vm[a@b]"}}, "is malformed"},
	} {
		if err := tt.g.Check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.g, err, tt.want)
		}
	}
}

// A pattern never leaves the part of a name that it stands in: what has no @ gives no
// snapshot and no read-only door, and what has one no volume.
func TestPatternsStayInTheirPart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.StringMatching(`([a-z*?.]|\[\^?[a-z!-~]-?[a-z~]?\]){1,4}`)
		pattern := part.Draw(t, "pattern")
		if rapid.Bool().Draw(t, "deep") {
			pattern += "@" + part.Draw(t, "label")
		}
		name := rapid.StringMatching(`[a-z.-]{1,6}(@[a-z.-]{1,6})?`).Draw(t, "name")
		if match(pattern, name) && strings.Count(pattern, "@") != strings.Count(name, "@") {
			t.Fatalf("%q stands for %q", pattern, name)
		}
	})
}
