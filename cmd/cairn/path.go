package main

import (
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
)

// Default places: those of the system for root, those of the XDG base
// directory specification for others.

func defaultState() string {
	if os.Geteuid() == 0 {
		return "/var/lib/cairn"
	}
	return filepath.Join(xdg("XDG_STATE_HOME", ".local/state"), "cairn")
}

func defaultRun() string {
	if os.Geteuid() == 0 {
		return "/run/cairn"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "cairn")
	}
	return filepath.Join(defaultState(), "run")
}

func defaultConfig() string {
	if os.Geteuid() == 0 {
		return "/etc/cairn/cairn.yaml"
	}
	return filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "cairn", "cairn.yaml")
}

func defaultSocket() string  { return filepath.Join(defaultRun(), "agent.sock") }
func defaultControl() string { return filepath.Join(defaultRun(), "serve.sock") }
func defaultNBDDir() string  { return filepath.Join(defaultRun(), "nbd") }

// xdg is the value of a variable, or a folder below the user's home.
func xdg(variable, fallback string) string {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "."
	}
	return filepath.Join(home, fallback)
}

func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", EnvVars: []string{"CAIRN_STATE"}, Value: defaultState(), Usage: "`folder` of everything that must be kept"}
}

func controlFlag() cli.Flag {
	return &cli.StringFlag{Name: "control", EnvVars: []string{"CAIRN_CONTROL"}, Value: defaultControl(), Usage: "control `socket` of the data plane"}
}

func nbdDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "nbd-dir", EnvVars: []string{"CAIRN_NBD_DIR"}, Value: defaultNBDDir(), Usage: "`folder` of the NBD sockets"}
}
