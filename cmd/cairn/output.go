package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
)

// outputFlag belongs to every command that prints.
func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`json|table`"}
}

// wantsJSON checks and reads the flag.
func wantsJSON(c *cli.Context) (bool, error) {
	switch o := c.String("output"); o {
	case "json":
		return true, nil
	case "table", "":
		return false, nil
	default:
		return false, usagef("--output %s: take json or table", o)
	}
}

// emit prints a value as JSON, or what table makes of it.
func emit(c *cli.Context, v any, table func(*table)) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if asJSON {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		_, err = c.App.Writer.Write(append(b, '\n'))
		return wrapOutput(err)
	}
	t := newTable()
	table(t)
	return wrapOutput(t.flush(c.App.Writer))
}

// say prints a line for people: to standard error when standard output has to
// stay JSON.
func say(c *cli.Context, format string, args ...any) error {
	w := c.App.Writer
	if c.String("output") == "json" {
		w = c.App.ErrWriter
	}
	_, err := fmt.Fprintf(w, format+"\n", args...)
	return wrapOutput(err)
}

func wrapOutput(err error) error {
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// list makes sure that an empty list is "[]" in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// table aligns columns.
type table struct {
	buf bytes.Buffer
	tw  *tabwriter.Writer
}

func newTable() *table {
	t := &table{}
	t.tw = tabwriter.NewWriter(&t.buf, 0, 8, 2, ' ', 0)
	return t
}

// row writes one line. Nothing that a name or an error text contains may break
// the table or play with the terminal.
func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.tw, "\t")
		}
		fmt.Fprint(t.tw, clean(fmt.Sprint(c)))
	}
	fmt.Fprintln(t.tw)
}

// field writes a line of a table with a name and a value; nothing if that is
// empty.
func (t *table) field(name string, value any) {
	if s := fmt.Sprint(value); s != "" {
		t.row(name, s)
	}
}

func (t *table) flush(w io.Writer) error {
	if err := t.tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.buf.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// when writes a time for people.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// took writes a duration for people.
func took(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// dash stands for nothing in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
