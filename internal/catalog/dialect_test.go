package catalog

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPlaceholders(t *testing.T) {
	for query, want := range map[string]string{
		"":                      "",
		"SELECT 1":              "SELECT 1",
		"?":                     "$1",
		"a = ? AND b=?":         "a = $1 AND b=$2",
		"(?,?, ?) WHERE":        "($1,$2, $3) WHERE",
		strings.Repeat("?", 11): "$1$2$3$4$5$6$7$8$9$10$11",
	} {
		if got := placeholders(query); got != want {
			t.Errorf("%q: %q", query, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-z= (),']{0,8}`), 1, 20).Draw(t, "parts")
		var want strings.Builder
		for i, p := range parts {
			if i > 0 {
				fmt.Fprintf(&want, "$%d", i)
			}
			want.WriteString(p)
		}
		if got := placeholders(strings.Join(parts, "?")); got != want.String() {
			t.Fatalf("%q, want %q", got, want.String())
		}
	})
}

// No query has a ? in a literal, a name in quotes or a comment, nor placeholders or
// words of one database only.
func TestQueries(t *testing.T) {
	foreign := regexp.MustCompile(`"[^"]*\?[^"]*"|--|/\*|\$[0-9]|INSERT OR|::|\bILIKE\b`)
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			l, ok := n.(*ast.BasicLit)
			if !ok || l.Kind != token.STRING || !strings.HasPrefix(l.Value, "`") {
				return true
			}
			text, uerr := strconv.Unquote(l.Value)
			if uerr != nil {
				t.Fatal(uerr)
			}
			if strings.Contains(text, "?") {
				queries++
			}
			if bad := foreign.FindString(text); bad != "" {
				t.Errorf("%s: %q in %q", f.Name(), bad, text)
			}
			for i, part := range strings.Split(text, "'") {
				if i%2 == 1 && strings.Contains(part, "?") {
					t.Errorf("%s: a ? in the literal '%s' of %q", f.Name(), part, text)
				}
			}
			return true
		})
	}
	if queries < 30 {
		t.Errorf("only %d queries were found: they are in raw strings", queries)
	}
}
