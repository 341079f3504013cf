package catalog

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// dialect is what differs between the databases. Queries are written once, with
// ? for arguments, in what both understand; SCHEMA.md says where they part.
type dialect struct {
	schema  func(text string) string  // turns a migration into the database's own words
	query   func(query string) string // turns ? into its placeholders
	now     string                    // its clock: nanoseconds since 1970
	skip    string                    // ends a query that is to skip records which another transaction takes
	level   sql.IsolationLevel        // of transactions
	timeout time.Duration             // of one method, with all attempts; 0 = none

	version    func(ctx context.Context, q conn) (int, error) // of the schema; 0 = there is none
	setVersion func(ctx context.Context, q conn, v int) error
	begin      func(ctx context.Context, q conn) error               // of a migration: waits for another one
	alone      func(ctx context.Context, q conn, about string) error // waits for transactions about the same
	again      func(err error) bool                                  // undone, and worth another attempt
	explain    func(name string, err error) error                    // with what to do about it

	notify func(ctx context.Context, q conn, host string) error                   // tells who listens as a host, when the transaction is committed
	listen func(ctx context.Context, db *sql.DB, host string, heard func()) error // until ctx ends or it fails; nil = nothing is heard
}

// placeholders turns each ? of a query into $1, $2 and so on. No query has one
// in a literal or a comment: a test looks.
func placeholders(query string) string {
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}

// checkTexts refuses what not every database can keep in a text, so that both
// refuse it alike.
func checkTexts(args []any) error {
	for _, a := range args {
		// Arguments may be strings by another name.
		if v := reflect.ValueOf(a); v.Kind() == reflect.String && !keepable(v.String()) {
			return fmt.Errorf("%.60q cannot be recorded: %w", v.String(), ErrText)
		}
	}
	return nil
}

func keepable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// sentence makes a text that can be recorded from one that Cairn composed, such
// as an error that cites a file's name: it must not get lost for a byte in it.
func sentence(s string) string {
	if keepable(s) {
		return s
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}
