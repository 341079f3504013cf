package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange mends, once for all commands, that urfave/cli stops to look for
// flags at the first argument that is none. It sorts the words of a command
// line into the command, its flags and its other arguments, wherever they
// stand, and puts them together in the order that the library understands:
//
//	cairn COMMAND SUBCOMMAND --flags -- arguments
//
// To know which word is the value of a flag, it looks at the flags that the
// command has. Behind "--" everything is an argument.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{app.Name}, nil
	}
	a := arranger{app: app, commands: app.Commands, path: []string{args[0]}}
	words := args[1:]
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		switch {
		case w == "--":
			if err := a.words(words); err != nil {
				return nil, err
			}
			words = nil
		case len(w) > 1 && w[0] == '-':
			used, err := a.flag(w, words)
			if err != nil {
				return nil, err
			}
			words = words[used:]
		default:
			if err := a.word(w); err != nil {
				return nil, err
			}
		}
	}
	return a.line()
}

type arranger struct {
	app      *cli.App
	commands []*cli.Command // those that the next word may name
	command  *cli.Command   // nil until one is named
	path     []string
	flags    []string
	given    []string // names of the flags
	args     []string
	help     bool
}

// leaf returns the command whose arguments follow, or nil while there is none.
func (a *arranger) leaf() *cli.Command {
	if a.command != nil && len(a.command.Subcommands) == 0 {
		return a.command
	}
	return nil
}

func (a *arranger) words(words []string) error {
	for _, w := range words {
		if err := a.word(w); err != nil {
			return err
		}
	}
	return nil
}

// word takes a word that is no flag: a command as long as one is expected.
func (a *arranger) word(w string) error {
	if a.leaf() != nil {
		a.args = append(a.args, w)
		return nil
	}
	if a.command == nil && w == "help" { // cairn help backup create
		a.help = true
		return nil
	}
	names := make([]string, 0, len(a.commands))
	for _, c := range a.commands {
		if c.HasName(w) {
			a.command, a.commands = c, c.Subcommands
			a.path = append(a.path, c.Name)
			return nil
		}
		names = append(names, c.Name)
	}
	known := strings.Join(names, ", ")
	if best := closest(w, names); best != "" {
		known = "did you mean " + best + "?"
	} else {
		known = "there are " + known
	}
	return usagef("%s has no command %q: %s", a.name(), w, known)
}

func (a *arranger) name() string { return strings.Join(append([]string{"cairn"}, a.path[1:]...), " ") }

// flag takes a flag and returns how many of the next words are its value.
func (a *arranger) flag(w string, next []string) (used int, err error) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(w, "-"), "=")
	switch name {
	case "help", "h":
		a.help = true
		return 0, nil
	case "version":
		if a.command == nil {
			return 0, a.word("version")
		}
	}
	f := find(a.candidates(), name)
	if f == nil {
		return 0, a.unknown(name)
	}
	a.given = append(a.given, name)
	// Long flags of one letter would be ambiguous with short ones: one form.
	w = "--" + strings.TrimLeft(w, "-")
	if standsAlone(f) {
		a.flags = append(a.flags, w)
		return 0, nil
	}
	if !hasValue {
		if len(next) == 0 {
			return 0, usagef("flag %s needs a value (see %s --help)", dashed(name), a.name())
		}
		value, used = next[0], 1
	}
	// As from a script's variable that is not set: to do without the flag could
	// restore elsewhere, or back something else up, than was meant.
	if value == "" && name != "name" && name != "description" {
		return 0, usagef("%s is empty: give it a value or leave it out", dashed(name))
	}
	a.flags = append(append(a.flags, w), next[:used]...)
	return used, nil
}

// candidates are the flags that may stand here: the command's, or those of all
// commands as long as it is not known. The same name takes a value everywhere
// or nowhere (a test sees to that).
func (a *arranger) candidates() []cli.Flag {
	if l := a.leaf(); l != nil {
		return l.Flags
	}
	var all []cli.Flag
	commands := a.commands
	for len(commands) > 0 {
		c := commands[0]
		commands = append(slices.Clone(commands[1:]), c.Subcommands...)
		all = append(all, c.Flags...)
	}
	return all
}

func find(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func (a *arranger) unknown(name string) error {
	names := make(map[string]bool)
	for _, f := range a.candidates() {
		for _, n := range f.Names() {
			if len(n) > 1 {
				names[n] = true
			}
		}
	}
	hint := "see " + a.name() + " --help"
	if best := closest(name, slices.Sorted(maps.Keys(names))); best != "" {
		hint = "did you mean --" + best + "?"
	}
	return usagef("%s has no flag %s: %s", a.name(), dashed(name), hint)
}

// dashed is a flag as it is written.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// line puts everything together.
func (a *arranger) line() ([]string, error) {
	if a.help {
		return append(a.path, "--help"), nil
	}
	var own []cli.Flag
	if a.command != nil {
		own = a.command.Flags
	}
	for _, name := range a.given { // those that stood before the command
		if find(own, name) == nil {
			return nil, a.unknown(name)
		}
	}
	line := append(a.path, a.flags...)
	if len(a.args) > 0 {
		line = append(append(line, "--"), a.args...)
	}
	return line, nil
}

// closest returns the one of names that w is most likely a slip of, or "".
func closest(w string, names []string) string {
	best, least := "", 1+len(w)/3
	for _, n := range names {
		if d := distance(w, n); d <= least {
			best, least = n, d-1
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// standsAlone reports whether a flag needs no value: what follows is none of it,
// unless it comes with "=".
func standsAlone(f cli.Flag) bool {
	if g, ok := f.(*cli.GenericFlag); ok {
		b, ok := g.Value.(interface{ IsBoolFlag() bool })
		return ok && b.IsBoolFlag()
	}
	_, ok := f.(*cli.BoolFlag)
	return ok
}
