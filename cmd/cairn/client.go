package main

import (
	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func socketFlag() cli.Flag {
	return &cli.StringFlag{Name: "socket", EnvVars: []string{"CAIRN_SOCKET"}, Value: defaultSocket(), Usage: "`socket` of the agent"}
}

// agentFlags are those of every command that talks to the agent and prints.
func agentFlags(more ...cli.Flag) []cli.Flag {
	return append(more, socketFlag(), outputFlag())
}

// agentRepoFlags are those of commands that are about one of its repositories.
func agentRepoFlags(more ...cli.Flag) []cli.Flag {
	return agentFlags(append(more, &cli.StringFlag{Name: "repo", Usage: "`name` of the agent's repository, if it has several; default is the one in its own settings"})...)
}

// withAgent is a command that talks to the agent. What -o says is checked
// before anything is done.
func withAgent(action func(*cli.Context, *agent.Client) error) func(*cli.Context) error {
	return func(c *cli.Context) error {
		if _, err := wantsJSON(c); err != nil {
			return err
		}
		client := agent.NewClient(c.String("socket"))
		defer client.Close()
		if name := c.String("repo"); name != "" {
			return action(c, client.Repository(name))
		}
		return action(c, client)
	}
}
