package repository

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/zeebo/blake3"
)

// A recovery sheet is the master key on paper: four lines of four groups of four
// characters, each line 8 bytes of the key and 2 that check them, in Crockford's
// base 32 (no I, L, O, U; those that are typed are taken for what they look like).
//
//	Key 1: 0B3T 9X1K ...

// MasterKey opens a repository in place of a password. It is as secret as all that
// is in the repository.
type MasterKey [32]byte

const (
	sheetDigits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	sheetLines  = 4
	sheetChunk  = 32 / sheetLines
)

// Sheet returns a recovery sheet: a page of text, for a safe.
func (r *Repository) Sheet() string {
	m := r.membership()
	var b strings.Builder
	fmt.Fprintf(&b, "CAIRN RECOVERY SHEET\n\nrepository  %s\nshards      %d data + %d parity: any %d of %d stores are enough\nprinted     %s\nstores\n",
		r.id, m.Data, m.Parity, m.Data, m.Data+m.Parity, r.o.Now().UTC().Format("2006-01-02 15:04 UTC"))
	for _, u := range r.URLs() {
		fmt.Fprintf(&b, "            %s\n", u)
	}
	master, epoch := r.newestMaster()
	if epoch > 0 {
		fmt.Fprintf(&b, "key         after rotation %d; a sheet from before it opens nothing any more\n", epoch)
	}
	b.WriteString("\nWhoever has the four lines below and can read the stores can read every backup. Keep this page as you\nkeep what is in them. Typed into a file, it opens the repository when all passwords are lost:\n\n    cairn repo key recover --sheet FILE --new-password-file FILE --store ...\n\n")
	for n := range sheetLines {
		fmt.Fprintf(&b, "Key %d: %s\n", n+1, sheetLine(n, master[n*sheetChunk:(n+1)*sheetChunk]))
	}
	return b.String()
}

func sheetLine(n int, part []byte) string {
	bits := append(append([]byte{}, part...), sheetCheck(n, part)...)
	var out []byte
	var acc uint32
	have := 0
	for _, c := range bits {
		acc, have = acc<<8|uint32(c), have+8
		for have >= 5 {
			have -= 5
			if len(out)%5 == 4 {
				out = append(out, ' ')
			}
			out = append(out, sheetDigits[acc>>have&31])
		}
	}
	return string(out)
}

func sheetCheck(n int, part []byte) []byte {
	sum := blake3.Sum256(append([]byte{'c', 'a', 'i', 'r', 'n', byte(n)}, part...)) //nolint:gosec // at most 3
	return sum[:2]
}

// ParseSheet reads a recovery sheet, or only its four lines, in any order and with
// any spaces and dashes. The error is ErrInvalid and names the line that is
// mistyped or missing.
func ParseSheet(text string) (MasterKey, error) {
	var key MasterKey
	var seen [sheetLines]bool
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.ToUpper(strings.TrimSpace(line)), "KEY ")
		if !ok {
			continue
		}
		number, groups, ok := strings.Cut(rest, ":")
		n := strings.Index("1234", strings.TrimSpace(number))
		if !ok || n < 0 || len(strings.TrimSpace(number)) != 1 {
			continue
		}
		part, err := parseSheetLine(n, groups)
		if err != nil {
			return key, fmt.Errorf("line \"Key %d\" of the recovery sheet %w: compare it with the page: %w", n+1, err, ErrInvalid)
		}
		if old := key[n*sheetChunk : (n+1)*sheetChunk]; seen[n] && string(old) != string(part) {
			return key, fmt.Errorf("line \"Key %d\" is there twice and not the same: %w", n+1, ErrInvalid)
		}
		copy(key[n*sheetChunk:], part)
		seen[n] = true
	}
	for n, ok := range seen {
		if !ok {
			return key, fmt.Errorf("the recovery sheet has no line \"Key %d: ...\": %w", n+1, ErrInvalid)
		}
	}
	return key, nil
}

func parseSheetLine(n int, groups string) ([]byte, error) {
	var out []byte
	var acc uint64
	have, digits := 0, 0
	for _, c := range groups {
		switch c {
		case ' ', '\t', '-':
			continue
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		v := strings.IndexRune(sheetDigits, c)
		if v < 0 {
			return nil, fmt.Errorf("has a %q, which is no digit of it", c)
		}
		digits++
		acc, have = acc<<5|uint64(v), have+5
		if have >= 8 {
			have -= 8
			out = append(out, byte(acc>>have)) //nolint:gosec // its low bits
		}
	}
	if digits != 16 || have != 0 {
		return nil, fmt.Errorf("has %d characters, not 16", digits)
	}
	part, check := out[:sheetChunk], out[sheetChunk:]
	if want := sheetCheck(n, part); binary.BigEndian.Uint16(check) != binary.BigEndian.Uint16(want) {
		return nil, errors.New("is mistyped")
	}
	return part, nil
}
