package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func statusCommand() *cli.Command {
	return leaf("status", "", "the agent, the data plane, the repository and its stores", agentRepoFlags(), withAgent(
		func(c *cli.Context, a *agent.Client) error {
			s, err := a.Status(c.Context)
			if err != nil {
				return err
			}
			return emit(c, s, func(t *table) { statusFields(t, s) })
		}))
}

func statusFields(t *table, s agent.Status) {
	t.field("agent", fmt.Sprintf("%s, process %d, up %s", s.Version, s.PID, took(time.Since(s.Started))))
	t.field("state", s.State)
	if p := s.Serve; p != nil {
		t.field("data plane", fmt.Sprintf("%s, process %d, up %s, %s resident", p.Version, p.PID, took(time.Since(p.Started)), human(p.ResidentBytes)))
		volumes := fmt.Sprintf("%d, %d connections", p.Volumes, p.Connections)
		if p.VolumesError > 0 {
			volumes += fmt.Sprintf(", %d not served: see \"cairn volume list\"", p.VolumesError)
		}
		t.field("volumes", volumes)
		t.field("snapshots", p.Snapshots)
		t.field("volumes over TCP", p.NBDListen)
	} else {
		t.field("data plane", "DOWN: "+s.ServeError)
	}
	catalogFields(t, s.Backups, s.Undecided, s.CatalogError)
	t.field("exports", s.Exports)
	t.field("exports over TCP", s.NBDListen)
	t.field("jobs", fmt.Sprintf("%d running, %d waiting", s.Running, s.Queued))
	repositoryFields(t, "repository", s.Repository)
	scrubField(t, s.Scrub)
	for _, o := range s.Others {
		repositoryFields(t, "repository "+o.Name, o.Repository)
		catalogFields(t, o.Backups, o.Undecided, o.CatalogError)
		t.field("exports", o.Exports)
	}
}

// catalogFields are what the catalog knows.
func catalogFields(t *table, backups, undecided int, problem string) {
	if problem != "" {
		t.field("catalog", "DOWN: "+problem)
		return
	}
	t.field("backups", backups)
	if undecided > 0 {
		t.field("undecided", fmt.Sprintf("%d backups wait for the stores to say whether they were committed", undecided))
	}
}

func repositoryFields(t *table, name string, r agent.RepositoryStatus) {
	if r.Error != "" {
		t.field(name, "NOT OPEN: "+r.Error)
		return
	}
	t.field(name, fmt.Sprintf("%s, %d+%d shards, any %d of %d stores restore everything", r.ID, r.Data, r.Parity, r.Data, r.Data+r.Parity))
	for _, st := range r.Stores {
		state := st.State
		if st.Error != "" {
			state += ": " + st.Error
		}
		if st.Owed > 0 {
			state += fmt.Sprintf(" (%d shards owed)", st.Owed)
		}
		t.field("store", dash(st.URL)+" "+state)
	}
}

func scrubField(t *table, x *agent.ScrubStatus) {
	if x != nil {
		said := "nothing read yet"
		switch {
		case x.Problem != "":
			said = x.Problem
		case !x.Last.IsZero():
			said = "nothing found, last " + when(x.Last)
		}
		t.field("scrub", fmt.Sprintf("%s; the next %d %% %s", said, x.Share, when(x.Next)))
	}
}

func versionCommand() *cli.Command {
	return leaf("version", "", "the version of this program", []cli.Flag{outputFlag()}, func(c *cli.Context) error {
		v := map[string]string{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
		return emit(c, v, func(t *table) {
			t.row(fmt.Sprintf("cairn %s (%s, %s)", version, v["go"], v["platform"]))
		})
	})
}

func completionCommand() *cli.Command {
	return leaf("completion", "SHELL", "print a completion script: eval \"$(cairn completion bash)\"; SHELL is bash, zsh or fish", nil, func(c *cli.Context) error {
		var script string
		switch shell := c.Args().First(); shell {
		case "bash":
			script = bashCompletion
		case "zsh":
			script = "autoload -U +X bashcompinit && bashcompinit\n" + bashCompletion
		case "fish":
			s, err := c.App.ToFishCompletion()
			if err != nil {
				return fmt.Errorf("make the completion script: %w", err)
			}
			script = s
		default:
			return usagef("there is no completion for %q: take bash, zsh or fish (you use %s)", shell, dash(filepath.Base(os.Getenv("SHELL"))))
		}
		_, err := fmt.Fprintln(c.App.Writer, strings.TrimRight(script, "\n"))
		return wrapOutput(err)
	})
}

// bashCompletion asks the program itself what may come next, and falls back to
// file names.
const bashCompletion = `_cairn() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words
  words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ "$cur" == -* ]] && words+=("$cur")
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _cairn cairn
`
