package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/identity"
	"github.com/cairnbackup/cairn/internal/vfs"
)

func projectCommands() *cli.Command {
	return group("project", "the projects that users act in, in STATE/identity.json; an agent need not run",
		leaf("create", "NAME", "make a project", identityFlags(
			&cli.StringFlag{Name: "description", Usage: "`text` that says what it is for"},
		), createProject),
		leaf("list", "", "all projects", identityFlags(), listProjects),
		leaf("delete", "PROJECT", "delete a project, and what users may do in it; its users stay, its backups too", identityFlags(), deleteProject),
	)
}

// identityFlags are those of the commands for projects and users.
func identityFlags(more ...cli.Flag) []cli.Flag {
	return append(more, usersFlag(), stateFlag(), outputFlag())
}

func usersFlag() cli.Flag {
	return &cli.StringFlag{Name: "users", EnvVars: []string{"CAIRN_USERS"}, Usage: "`file` with the projects and users (identity.json in the state folder if not given)"}
}

// usersFile is where the projects and users are.
func usersFile(named, state string) (string, error) {
	if named == "" {
		named = filepath.Join(state, "identity.json")
	}
	return absolute(named)
}

func identityFile(c *cli.Context) (string, error) {
	return usersFile(c.String("users"), c.String("state"))
}

// editIdentity changes the users file.
func editIdentity(c *cli.Context, change func(*identity.Directory) error) error {
	if _, err := wantsJSON(c); err != nil {
		return err // before anything is changed
	}
	name, err := identityFile(c)
	if err != nil {
		return err
	}
	return identity.Edit(c.Context, vfs.OS(), name, change)
}

// readIdentity reads the users file; one that is not there has nobody in it.
func readIdentity(c *cli.Context) (*identity.Directory, error) {
	name, err := identityFile(c)
	if err != nil {
		return nil, err
	}
	return identity.Read(vfs.OS(), name)
}

// tellOfKeystone says, where the users file has nobody, that it is not the only place.
func tellOfKeystone(c *cli.Context, d *identity.Directory) error {
	if len(d.Projects())+len(d.Users()) > 0 {
		return nil
	}
	name, err := identityFile(c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "cairn: %s has no projects and no users: \"cairn project create NAME\" makes the first; those of a Keystone are not in it: \"openstack project list\" and \"openstack user list\" show them\n", name)
	return wrapOutput(err)
}

func createProject(c *cli.Context) error {
	var p identity.Project
	err := editIdentity(c, func(d *identity.Directory) (err error) {
		p, err = d.CreateProject(c.Args().First(), c.String("description"))
		return err
	})
	if err != nil {
		return err
	}
	return emit(c, p, func(t *table) {
		t.field("name", p.Name)
		t.field("id", p.ID)
		t.field("description", p.Description)
	})
}

func listProjects(c *cli.Context) error {
	d, err := readIdentity(c)
	if err != nil {
		return err
	}
	if err = tellOfKeystone(c, d); err != nil {
		return err
	}
	all := d.Projects()
	return emit(c, list(all), func(t *table) {
		t.row("NAME", "ID", "DESCRIPTION")
		for _, p := range all {
			t.row(p.Name, p.ID, dash(p.Description))
		}
	})
}

func deleteProject(c *cli.Context) error {
	var p identity.Project
	err := editIdentity(c, func(d *identity.Directory) (err error) {
		p, err = d.DeleteProject(c.Args().First())
		return err
	})
	if err != nil {
		return err
	}
	return emitDeleted(c, "project", p.Name)
}
