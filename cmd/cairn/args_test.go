package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	for _, c := range []struct {
		name, line, want string // want: the line, or what the error says
	}{
		{"as it is", "backup create --incremental vm", "backup create --incremental -- vm"},
		{"flags behind", "backup create vm --name n --incremental", "backup create --name n --incremental -- vm"},
		{"flags before", "-o json backup show b", "backup show --o json -- b"},
		{"flags between", "backup --name n create vm -o=json", "backup create --name n --o=json -- vm"},
		{"several arguments", "snapshot create a --name n b", "snapshot create --name n -- a b"},
		{"value that looks like a flag", "backup create vm --name --force", "backup create --name --force -- vm"},
		{"double dash", "backup create -- --force", "backup create -- --force"},
		{"double dash before the command", "-- volume show -- x", "volume show -- -- x"},
		{"single dash is an argument", "copy - x", "copy -- - x"},
		{"short as long", "volume list -output json", "volume list --output json"},
		{"help", "help backup create", "backup create --help"},
		{"help behind", "backup create vm -h", "backup create --help"},
		{"help of all", "help", "--help"},
		{"nothing", "", ""},
		{"version flag", "--version", "version"},
		{"group alone", "backup", "backup"},
		{"unknown command", "bakcup list", `cairn has no command "bakcup": did you mean backup?`},
		{"unknown subcommand", "volume lsit", `cairn volume has no command "lsit": did you mean list?`},
		{"far off", "frobnicate", `cairn has no command "frobnicate": there are agent, serve,`},
		{"unknown flag", "backup create vm --incremantal", "cairn backup create has no flag --incremantal: did you mean --incremental?"},
		{"flag of another command", "volume list --force", "cairn volume list has no flag --force: see cairn volume list --help"},
		{"flag of another command before it", "--force volume list", "cairn volume list has no flag --force"},
		{"unknown short flag", "volume list -x", "cairn volume list has no flag -x"},
		{"no value", "volume create x --size", "flag --size needs a value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := arrange(newApp(io.Discard, io.Discard), append([]string{"cairn"}, strings.Fields(c.line)...))
			if err != nil {
				if !strings.Contains(err.Error(), c.want) || !isUsage(err) || c.want == "" {
					t.Errorf("error %q, want %q", err, c.want)
				}
				return
			}
			if line := strings.Join(got[1:], " "); line != c.want {
				t.Errorf("got %q, want %q", line, c.want)
			}
		})
	}
}

// Before the command is known, a flag is looked up among those of all commands:
// it must take a value in each or in none.
func TestFlagsAreConsistent(t *testing.T) {
	isBool := make(map[string]bool)
	commands := newApp(io.Discard, io.Discard).Commands
	for len(commands) > 0 {
		c := commands[0]
		commands = append(commands[1:], c.Subcommands...)
		seen := make(map[string]bool)
		for _, f := range c.Flags {
			b := standsAlone(f)
			for _, n := range f.Names() {
				if other, ok := isBool[n]; ok && other != b {
					t.Errorf("--%s of %s takes a value elsewhere and not here, or the other way round", n, c.Name)
				}
				isBool[n] = b
				if seen[n] {
					t.Errorf("--%s twice in %s", n, c.Name)
				}
				seen[n] = true
			}
		}
	}
}

// Every command that prints has -o, and every command says what it does.
func TestCommandsAreComplete(t *testing.T) {
	silent := []string{"agent", "serve", "completion"}
	commands := newApp(io.Discard, io.Discard).Commands
	for len(commands) > 0 {
		c := commands[0]
		commands = append(commands[1:], c.Subcommands...)
		if c.Usage == "" {
			t.Errorf("%s does not say what it does", c.Name)
		}
		if len(c.Subcommands) == 0 && find(c.Flags, "o") == nil && !slices.Contains(silent, c.Name) {
			t.Errorf("%s has no -o", c.Name)
		}
	}
}
