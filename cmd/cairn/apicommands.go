package main

import (
	"errors"
	"maps"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/identity"
)

// quotaFlags are the limits of a project.
var quotaFlags = []struct{ name, resource, usage string }{
	{"backups", "backups", "most backups, whatever their state; -1 = no limit"},
	{"backup-gigabytes", "backup_gigabytes", "most GiB of volumes in backups, each of its volume's full size"},
	{"volumes", "volumes", "most volumes"},
	{"gigabytes", "gigabytes", "most GiB of volumes and snapshots"},
	{"snapshots", "snapshots", "most snapshots"},
	{"per-volume-gigabytes", "per_volume_gigabytes", "most GiB of one volume"},
}

func quotaCommands() *cli.Command {
	var limits []cli.Flag
	for _, f := range quotaFlags {
		limits = append(limits, &cli.Int64Flag{Name: f.name, Usage: f.usage})
	}
	return group("quota", "what a project may have, when it uses the Block Storage API",
		leaf("show", "PROJECT", "the limits of a project, and what it has", agentFlags(usersFlag(), stateFlag()), withAgent(showQuota)),
		leaf("update", "PROJECT", "change limits of a project", agentFlags(append(limits, usersFlag(), stateFlag())...), withAgent(updateQuota)),
	)
}

func serviceCommands() *cli.Command {
	return group("service", "the services of the Block Storage API",
		leaf("list", "", "which hosts serve it, and whether they are up", agentFlags(), withAgent(listServices)),
		leaf("disable", "HOST", "give a host no new volumes; what it has is served on", agentFlags(&cli.StringFlag{Name: "reason", Usage: "`text` that the list shows", Value: "disabled by the operator"}),
			withAgent(func(c *cli.Context, a *agent.Client) error {
				if c.String("reason") == "" {
					return usagef("a reason is needed, as the list shows it")
				}
				return a.DisableHost(c.Context, c.Args().First(), c.String("reason"))
			})),
		leaf("enable", "HOST", "give a host new volumes again", agentFlags(),
			withAgent(func(c *cli.Context, a *agent.Client) error { return a.DisableHost(c.Context, c.Args().First(), "") })),
		leaf("forget", "HOST", "forget a host that is gone for good, with its volumes; its backups stay", agentFlags(),
			withAgent(func(c *cli.Context, a *agent.Client) error { return a.ForgetHost(c.Context, c.Args().First()) })),
	)
}

func catalogCommands() *cli.Command {
	return group("catalog", "the agent's records of backups",
		leaf("rebuild", "", "record all backups that the repository has and the catalog does not know; an agent that starts does so by itself", agentRepoFlags(), withAgent(rebuildCatalog)),
	)
}

func rebuildCatalog(c *cli.Context, a *agent.Client) error {
	r, err := a.RebuildCatalog(c.Context)
	if err != nil {
		return err
	}
	return emit(c, r, func(t *table) { t.field("backups found", r.Found) })
}

// projectOf is the ID of a project of the users file, or of a Keystone, which knows who
// has its tokens, and not the agent: there it has to be the ID that was named. Where
// there is neither, it is an ID that nobody can check.
func projectOf(c *cli.Context, a *agent.Client, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	d, err := readIdentity(c)
	if err != nil {
		return "", err
	}
	p, err := d.Project(ref)
	if !errors.Is(err, identity.ErrNotFound) {
		return p.ID, err
	}
	st, serr := a.Status(c.Context)
	switch {
	case serr != nil:
		return "", serr
	case st.Keystone != "" && uuid.Validate(ref) == nil:
		return ref, nil
	case st.Keystone != "":
		return "", missingf("there is no project %q in the users file, and a project of the Keystone at %s is named by its ID here: \"openstack project show %s -f value -c id\" tells it", ref, st.Keystone, ref)
	case len(d.Projects()) == 0:
		return ref, nil
	default:
		return "", err
	}
}

func showQuota(c *cli.Context, a *agent.Client) error {
	project, err := projectOf(c, a, c.Args().First())
	if err != nil {
		return err
	}
	q, err := a.Quota(c.Context, project)
	if err != nil {
		return err
	}
	return emitQuota(c, q)
}

func updateQuota(c *cli.Context, a *agent.Client) error {
	limits := map[string]int64{}
	for _, f := range quotaFlags {
		if c.IsSet(f.name) {
			limits[f.resource] = c.Int64(f.name)
		}
	}
	if len(limits) == 0 {
		return usagef("no limit is named: \"cairn help quota update\" shows which there are")
	}
	project, err := projectOf(c, a, c.Args().First())
	if err != nil {
		return err
	}
	q, err := a.SetQuota(c.Context, project, limits)
	if err != nil {
		return err
	}
	return emitQuota(c, q)
}

func emitQuota(c *cli.Context, q agent.Quota) error {
	return emit(c, q, func(t *table) {
		t.row("WHAT", "LIMIT", "IN USE")
		for _, resource := range slices.Sorted(maps.Keys(q)) {
			limit := strconv.FormatInt(q[resource].Limit, 10)
			if q[resource].Limit < 0 {
				limit = "none"
			}
			t.row(resource, limit, q[resource].InUse)
		}
	})
}

func listServices(c *cli.Context, a *agent.Client) error {
	hosts, err := a.Hosts(c.Context)
	if err != nil {
		return err
	}
	return emit(c, list(hosts), func(t *table) {
		t.row("BINARY", "HOST", "STATE", "SEEN")
		for _, h := range hosts {
			state := "down"
			if h.Up {
				state = "up"
			}
			t.row(h.Binary, h.Name, state, when(h.Updated))
		}
	})
}

// assignVolume gives a volume to a project.
func assignVolume(c *cli.Context, a *agent.Client) error {
	if c.String("project") == "" && !c.Bool("none") {
		return usagef("say whose the volume is to be with --project, or --none")
	}
	project, err := projectOf(c, a, c.String("project"))
	if err != nil {
		return err
	}
	v, err := a.AssignVolume(c.Context, c.Args().First(), project)
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}
