package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// maxSheet bounds what is read of a recovery sheet.
const maxSheet = 1 << 20

func keyCommands() *cli.Command {
	newPassword := &cli.StringFlag{Name: "new-password-file", Usage: "`file` with the new password, mode 0600"}
	label := &cli.StringFlag{Name: "label", Usage: "`text` that says whose it is"}
	sheet := &cli.StringFlag{Name: "sheet", Usage: "`file` with the recovery sheet, in place of a password"}
	rotate := leaf("rotate", "", "seal under a new key what is written from now on; all other passwords and all sheets stop working", repositoryFlags(), withRepository(keyRotate))
	rotate.Description = "For the day when somebody may have the key who should not. The password that is used goes on\n" +
		"working, so that it must be one that they cannot know: if need be, add one first. Every other one\n" +
		"has to be added anew, and a new recovery sheet printed. It re-encrypts nothing: what was written\n" +
		"before can be read with the old key for as long as it is in the stores, and whoever has it can\n" +
		"still tell whether a content or a name that they know is there.\n" +
		"One that was interrupted is gone on with by the same command; when that cannot be, because its password\n" +
		"or a store is lost for good, \"cairn repo changes --abandon\" gives it up."
	return group("key", "the passwords that open the repository",
		leaf("add", "", "make another password open the repository", repositoryFlags(newPassword, label), withRepository(keyAdd)),
		leaf("list", "", "the passwords, by their keys' IDs and labels", repositoryFlags(sheet), withRepository(keyList)),
		leaf("remove", "KEY", "make a password open the repository no longer", repositoryFlags(
			&cli.BoolFlag{Name: "force", Usage: "also the one that is being used"}, sheet,
		), withRepository(keyRemove)),
		rotate,
		leaf("export", "", "print the recovery sheet: the key itself, for a safe", repositoryFlags(
			&cli.StringFlag{Name: "file", Usage: "`path` of a file to write, mode 0600, instead of printing"},
		), withRepository(keyExport)),
		leaf("recover", "", "make a password open the repository when all are lost", append([]cli.Flag{
			&cli.StringFlag{Name: "sheet", Required: true, Usage: "`file` with the recovery sheet, typed or scanned"},
			newPassword, label,
		}, storeFlag(), stateFlag(), outputFlag()), withRepository(keyAdd)),
	)
}

// keyResult is the JSON of one key.
type keyResult struct {
	ID      string    `json:"id"`
	Label   string    `json:"label"`
	Created time.Time `json:"created_at,omitzero"`
	KDF     string    `json:"kdf"`
	Stores  int       `json:"stores"`
	Current bool      `json:"current"`
	Old     bool      `json:"old,omitempty"`
	Damaged bool      `json:"damaged,omitempty"`
}

func keyOf(k repository.Key) keyResult {
	return keyResult{
		k.ID, k.Label, k.Created, fmt.Sprintf("argon2id, %d MiB, %d passes, %d lanes", k.KDF.MemoryKiB>>10, k.KDF.Time, k.KDF.Threads), k.Stores, k.Current, k.Old, k.Damaged,
	}
}

func keyAdd(c *cli.Context, r *repository.Repository) error {
	name := c.String("new-password-file")
	if name == "" {
		return usagef("--new-password-file FILE is missing: make one with \"(umask 077; head -c 24 /dev/urandom | base64 > FILE)\"")
	}
	pw, err := readPassword(name)
	if err != nil {
		return err
	}
	if len(c.String("label")) > 255 {
		return usagef("the label has %d bytes, at most 255 are kept", len(c.String("label")))
	}
	k, err := r.AddKey(c.Context, pw, c.String("label"), nil)
	if err != nil {
		return err
	}
	return emit(c, keyOf(k), func(t *table) {
		t.row(fmt.Sprintf("the password in %s opens the repository now: key %s", name, k.ID))
	})
}

func keyList(c *cli.Context, r *repository.Repository) error {
	all, err := r.Keys(c.Context)
	if err != nil {
		return err
	}
	out := []keyResult{}
	for _, k := range all {
		out = append(out, keyOf(k))
	}
	return emit(c, out, func(t *table) {
		t.row("ID", "LABEL", "CREATED", "STORES", "USED NOW", "KDF")
		for _, k := range out {
			used := ""
			if k.Current {
				used = "yes"
			}
			if k.Damaged {
				t.row(k.ID, "-", "-", k.Stores, "-", "damaged: it opens nothing")
				continue
			}
			if k.Old {
				t.row(k.ID, dash(k.Label), when(k.Created), k.Stores, "-", "of another key: it opens nothing")
				continue
			}
			t.row(k.ID, dash(k.Label), when(k.Created), k.Stores, dash(used), k.KDF)
		}
	})
}

func keyRemove(c *cli.Context, r *repository.Repository) error {
	id := c.Args().First()
	left, err := r.RemoveKey(c.Context, id, c.Bool("force"))
	if err != nil {
		if errors.Is(err, repository.ErrNotFound) {
			err = fmt.Errorf("there is no key %s: \"cairn repo key list\" shows those there are: %w", id, err)
		}
		return err
	}
	return emit(c, map[string]any{"deleted": id, "kind": "key", "stores_left": left}, func(t *table) {
		t.row(fmt.Sprintf("key %s is removed: its password opens the repository no longer", id))
		if left > 0 {
			t.row(fmt.Sprintf("%d stores may still have its object, which the mark on the others outranks: a prune removes it when they are back", left))
		}
		t.row("whoever kept a copy of it with the password, or had the repository open, may still know the master key: \"cairn repo key rotate\" makes a new one")
	})
}

func keyExport(c *cli.Context, r *repository.Repository) error {
	sheet := r.Sheet()
	name := c.String("file")
	if name == "" {
		if _, err := io.WriteString(c.App.Writer, sheet); err != nil {
			return fmt.Errorf("print the recovery sheet: %w", err)
		}
		return nil
	}
	name, err := absolute(name)
	if err != nil {
		return err
	}
	if _, err = os.Lstat(name); err == nil {
		return busyf("%s exists: name a new file", name)
	}
	if err = vfs.WriteFile(vfs.OS(), name, []byte(sheet), 0o600); err != nil {
		return fmt.Errorf("write the recovery sheet: %w", err)
	}
	return emit(c, map[string]string{"file": name}, func(t *table) {
		t.row(fmt.Sprintf("the recovery sheet is in %s: print it, put it into a safe, and delete the file", filepath.Clean(name)))
	})
}

func readSheet(name string) (*repository.MasterKey, error) {
	b, err := vfs.ReadFile(vfs.OS(), name, maxSheet)
	if err != nil {
		return nil, fmt.Errorf("read the recovery sheet: %w", err)
	}
	k, err := repository.ParseSheet(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &k, nil
}
