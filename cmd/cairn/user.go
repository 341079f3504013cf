package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/identity"
)

func userCommands() *cli.Command {
	passwordFile := &cli.StringFlag{Name: "password-file", Usage: "`file` with the user's password, mode 0600"}
	return group("user", "who may call the OpenStack API, in STATE/identity.json; an agent need not run",
		leaf("create", "NAME", "make a user", identityFlags(
			&cli.StringSliceFlag{Name: "project", Usage: "`PROJECT` that the user is a member of, by name or ID; once for each, the first is the default"},
			&cli.BoolFlag{Name: "admin", Usage: "administrator of everything, in every project"},
			passwordFile,
		), createUser),
		leaf("list", "", "all users", identityFlags(), listUsers),
		leaf("password", "USER", "give a user another password; their tokens end at once", identityFlags(passwordFile), setUserPassword),
		leaf("delete", "USER", "delete a user; their tokens end at once", identityFlags(), deleteUser),
	)
}

// userResult is the JSON of a user, without the password's hash.
type userResult struct {
	ID             string              `json:"id"`
	Name           string              `json:"name"`
	Admin          bool                `json:"admin"`
	DefaultProject string              `json:"default_project"`
	Projects       map[string][]string `json:"projects"`
}

func userOf(u identity.User) userResult {
	return userResult{u.ID, u.Name, u.Admin, u.DefaultProject, u.Projects}
}

// userPassword reads the password of a user from the file that has to be named.
func userPassword(c *cli.Context) ([]byte, error) {
	name := c.String("password-file")
	if name == "" {
		return nil, usagef("--password-file FILE is missing: make one with \"(umask 077; head -c 24 /dev/urandom | base64 > FILE)\"")
	}
	return readPassword(name)
}

func createUser(c *cli.Context) error {
	if !c.IsSet("project") {
		return usagef("--project PROJECT is missing: \"cairn project list\" shows those there are, \"cairn project create NAME\" makes one")
	}
	pw, err := userPassword(c)
	if err != nil {
		return err
	}
	var u identity.User
	err = editIdentity(c, func(d *identity.Directory) (err error) {
		u, err = d.CreateUser(identity.NewUser{
			Name: c.Args().First(), Projects: c.StringSlice("project"), Admin: c.Bool("admin"), Password: pw,
		})
		return err
	})
	if err != nil {
		return err
	}
	return emit(c, userOf(u), func(t *table) {
		t.field("name", u.Name)
		t.field("id", u.ID)
		t.field("admin", yes(u.Admin))
	})
}

func listUsers(c *cli.Context) error {
	d, err := readIdentity(c)
	if err != nil {
		return err
	}
	if err = tellOfKeystone(c, d); err != nil {
		return err
	}
	out := []userResult{}
	for _, u := range d.Users() {
		out = append(out, userOf(u))
	}
	names := map[string]string{}
	for _, p := range d.Projects() {
		names[p.ID] = p.Name
	}
	return emit(c, out, func(t *table) {
		t.row("NAME", "ID", "ADMIN", "PROJECTS")
		for _, u := range out {
			var in []string
			for _, id := range slices.Sorted(maps.Keys(u.Projects)) {
				in = append(in, fmt.Sprintf("%s (%s)", names[id], strings.Join(u.Projects[id], ", ")))
			}
			slices.Sort(in)
			t.row(u.Name, u.ID, dash(yes(u.Admin)), dash(strings.Join(in, ", ")))
		}
	})
}

// yes is a word for true, and nothing for false.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func setUserPassword(c *cli.Context) error {
	pw, err := userPassword(c)
	if err != nil {
		return err
	}
	var u identity.User
	err = editIdentity(c, func(d *identity.Directory) (err error) {
		u, err = d.SetPassword(c.Args().First(), pw)
		return err
	})
	if err != nil {
		return err
	}
	return emit(c, userOf(u), func(t *table) {
		t.row(fmt.Sprintf("user %s has another password", u.Name))
	})
}

func deleteUser(c *cli.Context) error {
	var u identity.User
	err := editIdentity(c, func(d *identity.Directory) (err error) {
		u, err = d.DeleteUser(c.Args().First())
		return err
	})
	if err != nil {
		return err
	}
	return emitDeleted(c, "user", u.Name)
}
