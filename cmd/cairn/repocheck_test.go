package main

import (
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/repository"
)

// What a check found is the exit code 7, if anything is wrong. That the password does
// not open all of it is another one, and no damage.
func TestCheckVerdict(t *testing.T) {
	up := func(missing int64, problems ...string) checkStore {
		return checkStore{State: string(repository.StoreUp), Missing: missing, Problems: problems}
	}
	whole, lost, unknown := checkBackup{Restorable: true}, checkBackup{}, checkBackup{Unjudged: true}
	const sealed = "1 backups that were made since the key was rotated cannot be judged"
	for _, tt := range []struct {
		name   string
		result checkResult
		code   int
		says   string
	}{
		{"all is well", checkResult{OK: true, Backups: []checkBackup{whole}}, 0, ""},
		{"a backup", checkResult{Backups: []checkBackup{whole, lost}}, exitDamage, "1 of 2 backups cannot be restored"},
		{"the repository", checkResult{Backups: []checkBackup{whole}, Found: []string{"it"}}, exitDamage, "every backup can be restored, but it"},
		{"a store", checkResult{Backups: []checkBackup{whole}, Stores: []checkStore{up(1)}}, exitDamage, "1 of 1 stores do not hold"},
		{"a store that cannot be listed", checkResult{Stores: []checkStore{up(0, "not listed")}}, exitDamage, "not every store"},
		{"a store that is away", checkResult{Stores: []checkStore{{State: string(repository.StoreDown)}}}, exitDamage, "could not be asked"},
		{"only the password", checkResult{Backups: []checkBackup{whole, unknown}, Stores: []checkStore{up(0)}, Unjudged: sealed}, exitRepository, sealed},
		{"and a backup", checkResult{Backups: []checkBackup{lost, unknown}, Stores: []checkStore{up(0)}, Unjudged: sealed}, exitDamage, "1 of 2 backups cannot be restored"},
		{"and a store", checkResult{Backups: []checkBackup{unknown}, Stores: []checkStore{up(0, "not listed")}, Unjudged: sealed}, exitDamage, sealed + "; every other backup can be restored, but not every store"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.result.verdict(1)
			if exitCode(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v: exit code %d, want %d", err, exitCode(err), tt.code)
			}
		})
	}
}
