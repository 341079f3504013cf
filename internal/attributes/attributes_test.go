package attributes

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestNormal(t *testing.T) {
	nested := func(n int) string { return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1) }
	long := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for _, tt := range []struct{ name, raw, want, says string }{
		{name: "nothing", raw: "", want: ""},
		{name: "null", raw: " null ", want: ""},
		{name: "empty", raw: "{ }", want: ""},
		{name: "white space goes", raw: "{ \"b\" : 1,\n\"a\":[1, 2] }", want: `{"b":1,"a":[1,2]}`},
		{name: "white space in strings stays", raw: `{"a":" \" x "}`, want: `{"a":" \" x "}`},
		{name: "numbers stay as they are", raw: `{"a":1.50e+007,"b":12345678901234567890123}`, want: `{"a":1.50e+007,"b":12345678901234567890123}`},
		{name: "HTML is escaped", raw: `{"a":"<&>"}`, want: `{"a":"\u003c\u0026\u003e"}`},
		{name: "escaped HTML stays", raw: `{"a":"\u003c"}`, want: `{"a":"\u003c"}`},
		{name: "braces in a string are not depth", raw: `{"a":"` + strings.Repeat("{", 100) + `"}`, want: `{"a":"` + strings.Repeat("{", 100) + `"}`},
		{name: "as deep as may be", raw: nested(maxDepth), want: nested(maxDepth)},
		{name: "too deep", raw: nested(maxDepth + 1), says: "nested"},
		{name: "far too deep", raw: nested(20000), says: "attributes"},
		{name: "as long as may be", raw: long(MaxBytes), want: long(MaxBytes)},
		{name: "white space does not count", raw: long(MaxBytes) + strings.Repeat(" ", 100), want: long(MaxBytes)},
		{name: "too long", raw: long(MaxBytes + 1), says: "65537 bytes, and 65536 is the limit"},
		{name: "too long when escaped", raw: `{"a":"` + strings.Repeat("<", MaxBytes/4) + `"}`, says: "is the limit"},
		{name: "a list", raw: `[1]`, says: "not a JSON object"},
		{name: "a string", raw: `"{}"`, says: "not a JSON object"},
		{name: "no JSON", raw: `{"a":`, says: "not JSON"},
		{name: "two objects", raw: `{"a":1}{"b":2}`, says: "not JSON"},
		{name: "no UTF-8", raw: "{\"a\":\"\xff\"}", says: "UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Normal(json.RawMessage(tt.raw))
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("error %v, want one that says %q", err, tt.says)
			}
			if string(got) != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// The normal form is what a JSON encoder makes of itself: whoever sends it on
// sends the same bytes.
func FuzzNormal(f *testing.F) {
	for _, s := range []string{`{"a":"<"}`, `{ "x" : [ {} , null ] }`, `{"\u2028":1}`, "{\"a\":\"\u2028\"}", "null", "", "[]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := Normal(raw)
		if err != nil || n == nil {
			return
		}
		again, err := Normal(n)
		if err != nil || !bytes.Equal(again, n) {
			t.Fatalf("%s is not %s: %v", again, n, err)
		}
		in := struct {
			A json.RawMessage `json:"a"`
		}{n}
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		in.A = nil
		if err := json.Unmarshal(b, &in); err != nil || !bytes.Equal(in.A, n) {
			t.Fatalf("%s became %s: %v", n, in.A, err)
		}
	})
}
