package fusefs

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"vm1", "vm1"},
		{"vm-1_a.b", "vm-1_a.b"},
		{"", "%"},
		{".", "%2E"},
		{"..", "%2E."},
		{"a/b", "a%2Fb"},
		{"a b", "a%20b"},
		{"100%", "100%25"},
		{"ß漢", "ß漢"},
		{"\xff\x00", "%FF%00"},
		{"a~b", "a%7Eb"},
		{"$(rm)*", "%24%28rm%29%2A"},
	} {
		if got := Escape(c.in); got != c.want {
			t.Errorf("Escape(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestEscapeKeepsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.StringN(0, 20, 60).Draw(t, "a"), rapid.StringN(0, 20, 60).Draw(t, "b")
		ea, eb := Escape(a), Escape(b)
		if (a == b) != (ea == eb) {
			t.Fatalf("Escape(%q) = %q, Escape(%q) = %q", a, ea, b, eb)
		}
		if ea == "" || ea[0] == '.' || strings.ContainsAny(ea, "/\x00~") || len(ea) > 255 {
			t.Fatalf("Escape(%q) = %q is no file name", a, ea)
		}
	})
}

func TestArrange(t *testing.T) {
	e := func(id, volume, volumeID string, at time.Time) Entry {
		return Entry{ID: id, Volume: volume, VolumeID: volumeID, Created: at}
	}
	got := arrange([]Entry{
		e("b2", "web", "v1", noon.Add(time.Hour)),
		e("b1", "web", "v1", noon),
		e("aaaaaaaa-1111", "db", "22222222-aaaa", noon),
		e("aaaaaaaa-2222", "db", "22222222-aaaa", noon.Add(time.Millisecond)), // the same second, the same eight characters
		e("b5", "db", "33333333-bbbb", noon),
		e("b6", "old name", "v4", noon),
		e("b7", "new name", "v4", noon.Add(time.Minute)),
	})
	var lines []string
	for _, v := range got {
		for _, b := range v.backups {
			lines = append(lines, v.name+"/"+b.name+" "+b.entry.ID)
		}
	}
	want := []string{
		"db~22222222/2026-03-04T12-30-15Z~aaaaaaaa-1111 aaaaaaaa-1111",
		"db~22222222/2026-03-04T12-30-15Z~aaaaaaaa-2222 aaaaaaaa-2222",
		"db~33333333/2026-03-04T12-30-15Z b5",
		"new%20name/2026-03-04T12-30-15Z b6",
		"new%20name/2026-03-04T12-31-15Z b7",
		"web/2026-03-04T12-30-15Z b1",
		"web/2026-03-04T13-30-15Z b2",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}
