package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
)

// checkResult is the JSON of a check.
type checkResult struct {
	OK      bool          `json:"ok"`
	Packs   int           `json:"packs"`
	Read    int           `json:"packs_read"`
	Before  int           `json:"packs_read_before"` // of these, by the check that this one goes on with
	Found   []string      `json:"problems"`          // of the repository as a whole
	Backups []checkBackup `json:"backups"`
	Stores  []checkStore  `json:"stores"`

	Beyond      int    `json:"packs_beyond_repair"`
	Unpublished string `json:"unpublished,omitempty"`
	Unjudged    string `json:"unjudged,omitempty"` // what the password does not open
}

type checkBackup struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Volume     string    `json:"volume"`
	Created    time.Time `json:"created_at"`
	Restorable bool      `json:"restorable"`
	Unjudged   bool      `json:"unjudged,omitempty"` // not restorable only in that the password does not open all of it
	Problems   []string  `json:"problems"`
	unreadable
}

type checkStore struct {
	URL      string   `json:"url"`
	ID       string   `json:"id"`
	State    string   `json:"state"`
	Error    string   `json:"error,omitempty"`
	Owed     int      `json:"owed"`
	Missing  int64    `json:"missing"`
	Damaged  int64    `json:"damaged"`
	Problems []string `json:"problems"`
}

// repoCheck proves backups restorable. That a backup is not, or that a store
// lost or changed something, is the exit code 7.
func repoCheck(c *cli.Context, r *repository.Repository) (err error) {
	percent := readData(c)
	partly := percent > 0 && percent < 100
	o := repository.CheckOptions{ReadData: percent > 0, Share: percent, Publish: percent > 0}
	if c.Bool("from-start") && percent == 0 {
		return usagef("--from-start goes with --read-data: a check that reads no data always begins at the start")
	}
	var progress *checkProgress // nil: no data is read
	if percent > 0 {
		if progress, err = remembered(c, r, percent, &o); err != nil {
			return err
		}
	}
	ended := false
	defer func() {
		if !ended {
			err = errors.Join(err, progress.leave())
		}
	}()
	if partly {
		if o.After, err = readPosition(positionFile(c, r)); err != nil {
			return err
		}
	}
	bar := newBar(c.App.ErrWriter)
	o.Progress = func(p repository.CheckProgress) { bar.show("check", p.Done, p.Total) }
	report, err := r.Check(c.Context, o)
	bar.end()
	if err != nil {
		return progress.interrupted(err, c.App.ErrWriter)
	}
	result := resultOf(report)
	if err := emit(c, result, func(t *table) { checkFields(t, result) }); err != nil {
		return err
	}
	if partly { // only now: what nobody was told is read again
		if err := writePosition(positionFile(c, r), report.Position); err != nil {
			return err
		}
	}
	ended = true
	if err := progress.finish(); err != nil {
		return err
	}
	return result.verdict(r.Info().Data + r.Info().Parity)
}

// verdict says in a sentence what was found; nil: nothing. It is errDamage, or ErrPassword
// when all that can be judged is well.
func (r checkResult) verdict(members int) error {
	if r.OK {
		return nil
	}
	lost := 0
	for _, b := range r.Backups {
		if !b.Restorable && !b.Unjudged {
			lost++
		}
	}
	if lost > 0 {
		return trouble(fmt.Sprintf("%d of %d backups cannot be restored in full: bring back the stores that are down, or keep what \"cairn repo restore --skip-damaged\" still gives%s", lost, len(r.Backups), healing(r.Beyond, r.Unpublished)))
	}
	every := "every backup can be restored, but "
	if r.Unjudged != "" {
		every = r.Unjudged + "; every other backup can be restored, but "
	}
	stores := storeTrouble(r.Stores, members)
	switch {
	case len(r.Found) > 0:
		return trouble(every + r.Found[0])
	case stores != "":
		return trouble(every + stores)
	case r.Unjudged != "":
		return fmt.Errorf("%s: nothing else was found (%w)", r.Unjudged, repository.ErrPassword)
	}
	return trouble(every + "not everything is as it should be")
}

// remembered lets a check of the data go on from one that was interrupted, and be gone
// on with. Where that cannot be, as the state folder cannot be written to or another
// check uses it, it says so and reads everything.
func remembered(c *cli.Context, r *repository.Repository, percent int, o *repository.CheckOptions) (*checkProgress, error) {
	p, err := openProgress(progressFile(c, r, percent), c.Bool("from-start"), time.Now())
	var text string
	if err != nil {
		text = "how far this check comes is not remembered: " + err.Error()
	} else {
		o.Before, o.Read = p.done, p.read
		o.Opened, o.Opens = p.opened, p.opens
		text = p.goesOn()
	}
	if text == "" {
		return p, nil
	}
	if _, err := fmt.Fprintln(c.App.ErrWriter, text); err != nil {
		return nil, errors.Join(err, p.leave())
	}
	return p, nil
}

// healing says what becomes of packs that are beyond repair.
func healing(beyond int, unpublished string) string {
	switch {
	case unpublished != "":
		return ". What is damaged for good could not be put on the stores, so that the next backups do not store it again: " + unpublished
	case beyond > 0:
		return ". The next backup of each volume stores again what the volume still has of it"
	}
	return ""
}

// trouble is what a check found; it is errDamage.
type trouble string

// Error returns the sentence.
func (t trouble) Error() string { return string(t) }

// Is makes it errDamage.
func (trouble) Is(target error) bool { return target == errDamage }

// storeTrouble says what is wrong with the stores when every backup can be
// restored, if anything is. A store that is down is listed as a member and as what was given.
func storeTrouble(stores []checkStore, members int) string {
	up, lacking := 0, 0
	for _, s := range stores {
		if s.State != string(repository.StoreUp) {
			continue
		}
		up++
		if s.Owed > 0 || s.Missing > 0 || s.Damaged > 0 {
			lacking++
		}
	}
	var l []string
	if lacking > 0 {
		l = append(l, fmt.Sprintf("%d of %d stores do not hold all that they should", lacking, members))
	}
	if away := members - up; away > 0 {
		l = append(l, fmt.Sprintf("%d of %d stores could not be asked: bring them back or name them all", away, members))
	}
	if len(l) == 0 && slices.ContainsFunc(stores, func(s checkStore) bool { return len(s.Problems) > 0 }) {
		return "not every store is as it should be"
	}
	return strings.Join(l, ", and ")
}

func resultOf(report repository.CheckReport) checkResult {
	result := checkResult{OK: report.OK(), Packs: report.Packs, Read: report.Read, Before: report.Recalled, Found: list(report.Problems), Backups: []checkBackup{}, Stores: []checkStore{}, Beyond: report.Beyond, Unpublished: report.Unpublished, Unjudged: report.Unjudged}
	for _, b := range report.Backups {
		result.Backups = append(result.Backups, checkBackupOf(b))
	}
	for _, s := range report.Stores {
		result.Stores = append(result.Stores, checkStore{
			URL: s.Status.URL, ID: s.Status.ID, State: string(s.Status.State), Error: s.Status.Error, Owed: s.Status.Owed,
			Missing: s.Missing, Damaged: s.Damaged, Problems: list(s.Problems),
		})
	}
	return result
}

func checkBackupOf(b repository.BackupReport) checkBackup {
	return checkBackup{
		ID: b.Backup.ID, Name: b.Backup.Name, Volume: b.Backup.Volume, Created: b.Backup.Created,
		Restorable: b.Restorable, Unjudged: b.Unjudged, Problems: list(b.Problems), unreadable: unreadableOf(b),
	}
}

func checkBackupRows(t *table, backups []checkBackup) {
	t.row("BACKUP", "VOLUME", "CREATED", "RESTORABLE")
	for _, b := range backups {
		verdict := "yes"
		switch {
		case b.Unjudged:
			verdict = "?"
		case !b.Restorable:
			verdict = "NO"
		}
		t.row(b.ID, b.Volume, when(b.Created), verdict)
		for _, l := range b.lines() {
			t.row("  " + l)
		}
		for _, p := range b.Problems {
			t.row("  " + p)
		}
	}
}

func checkFields(t *table, r checkResult) {
	checkBackupRows(t, r.Backups)
	t.row()
	t.row("STORE", "STATE", "OWED", "MISSING", "DAMAGED")
	for _, s := range r.Stores {
		t.row(dash(s.URL), s.State, s.Owed, s.Missing, s.Damaged)
		if s.Error != "" {
			t.row("  " + s.Error)
		}
		for _, p := range s.Problems {
			t.row("  " + p)
		}
	}
	t.row()
	for _, p := range r.Found {
		t.row(p)
	}
	if r.Unjudged != "" {
		t.row(r.Unjudged)
	}
	before := ""
	if r.Before > 0 {
		before = fmt.Sprintf(", of %d before this check was interrupted", r.Before)
	}
	t.row(fmt.Sprintf("the data of %d of %d packs was read%s", r.Read, r.Packs, before))
	if r.Beyond > 0 {
		t.row(fmt.Sprintf("%d packs are beyond repair", r.Beyond))
	}
}
