package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

const sqliteScheme = "sqlite:"

// takeCatalog takes the address of the catalog from the command line, which every
// user of the machine can read.
func (s *agentSettings) takeCatalog(c *cli.Context) error {
	if !c.IsSet("catalog") {
		return nil
	}
	s.Catalog = c.String("catalog")
	if agent.HasPassword(s.Catalog) {
		return usagef("catalog: a password on the command line is shown to every user of this machine: leave it out and put it into a file that PGPASSFILE names, as HOST:PORT:DATABASE:USER:PASSWORD")
	}
	return nil
}

// checkCatalog refuses what is no address of a catalog.
func (s *agentSettings) checkCatalog() error {
	if s.Catalog == "" {
		return nil
	}
	if err := agent.CheckCatalog(s.Catalog); err != nil {
		return usagef("%v", err)
	}
	file, ok := strings.CutPrefix(s.Catalog, sqliteScheme)
	if !ok && !hasScheme(s.Catalog) {
		return usagef("catalog: %q does not say which database it is: give sqlite:FILE or postgres://USER@HOST/DATABASE", s.Catalog)
	}
	if ok {
		path, err := absolute(file)
		if err != nil {
			return err
		}
		s.Catalog = sqliteScheme + path
	}
	return nil
}
