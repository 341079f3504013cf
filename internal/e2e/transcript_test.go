package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// transcript is a session of the stock clients as a page of the docs. What differs from
// run to run – IDs, times – is replaced by what is as long.
type transcript struct {
	text strings.Builder
	who  string
	ids  map[string]string
}

func newTranscript() *transcript { return &transcript{ids: map[string]string{}} }

// chapter begins one.
func (x *transcript) chapter(title, text string) {
	x.close()
	fmt.Fprintf(&x.text, "\n## %s\n%s\n", title, text)
}

func (x *transcript) close() {
	if x.who != "" {
		x.text.WriteString("```\n")
	}
	x.who = ""
}

// add writes a command and its output.
func (x *transcript) add(who string, args []string, out string) {
	if x.who != who {
		x.close()
		fmt.Fprintf(&x.text, "\nAs `%s`:\n```\n", who)
		x.who = who
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " $") {
			quoted[i] = "'" + a + "'"
		}
	}
	x.text.WriteString(x.stable("$ " + strings.Join(quoted, " ") + "\n" + inOrder(out)))
	if !strings.HasSuffix(out, "\n") && out != "" {
		x.text.WriteString("\n")
	}
}

// inOrder sorts the rows of lists: the cinder client sorts by ID, which is random.
func inOrder(out string) string {
	lines := strings.SplitAfter(out, "\n")
	byText := func(a, b string) int {
		return strings.Compare(uuids.ReplaceAllString(a, ""), uuids.ReplaceAllString(b, ""))
	}
	for i := 0; i+2 < len(lines); i++ {
		if !strings.HasPrefix(lines[i], "| ID ") {
			continue
		}
		end := i + 2 // behind the header and its frame
		for end < len(lines) && strings.HasPrefix(lines[end], "|") {
			end++
		}
		slices.SortFunc(lines[i+2:end], byText)
	}
	return strings.Join(lines, "")
}

var (
	uuids   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	hexes   = regexp.MustCompile(`\b[0-9a-f]{32}\b`)
	times   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}`)
	records = regexp.MustCompile(`[A-Za-z0-9+/=]{200,}`)
	frames  = regexp.MustCompile(`-{200,}`)
	spaces  = regexp.MustCompile(` {200,}`)
	address = regexp.MustCompile(`127\.0\.0\.1:\d+`)
)

// stable replaces what differs. The same ID is always the same.
func (x *transcript) stable(s string) string {
	s = uuids.ReplaceAllStringFunc(s, func(id string) string {
		if _, ok := x.ids[id]; !ok {
			x.ids[id] = fmt.Sprintf("00000000-0000-4000-8000-%012d", len(x.ids)+1)
		}
		return x.ids[id]
	})
	s = hexes.ReplaceAllStringFunc(s, func(id string) string {
		if _, ok := x.ids[id]; !ok {
			x.ids[id] = fmt.Sprintf("%032d", len(x.ids)+1)
		}
		return x.ids[id]
	})
	s = times.ReplaceAllString(s, "2026-01-02T15:04:05.000000")
	s = address.ReplaceAllString(s, "192.0.2.10:8776")
	s = records.ReplaceAllString(s, "eyJpZCI6…")
	return spaces.ReplaceAllString(frames.ReplaceAllString(s, "---"), " ")
}

// compare compares the session with the page in a file; with CAIRN_UPDATE=1 it writes
// the page.
func (x *transcript) compare(t *testing.T, title, file string) {
	t.Helper()
	x.close()
	got := title + x.text.String()
	if os.Getenv("CAIRN_UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	a, b := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("%s says at line %d\n%s\nand the session was\n%s\nIf that is right, write the page again with CAIRN_UPDATE=1.", file, i+1, a[i], b[i])
		}
	}
	t.Fatalf("%s has %d lines, the session %d: write it again with CAIRN_UPDATE=1 if that is right", file, len(a), len(b))
}
