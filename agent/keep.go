package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keep is a retention policy: how many backups of a volume are kept for each
// reason. A backup stays if any reason keeps it.
type Keep struct {
	Last    int `json:"last,omitempty"`   // the newest
	Hourly  int `json:"hourly,omitempty"` // the newest of each of so many hours that have one, and so on
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"` // by ISO 8601, from Monday on
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
}

// KeepDecision is what a policy says of one backup.
type KeepDecision struct {
	Backup Backup
	Keep   bool
	Why    string // for people
}

// Empty reports whether the policy keeps nothing.
func (k Keep) Empty() bool { return k == Keep{} }

// Decide says which backups of one volume stay, newest first. Only those that
// are available count and may go; those being restored, and those whose
// retention has not ended, stay, and others are
// left out. Hours, days and so on are those of zone.
func (k Keep) Decide(backups []Backup, zone *time.Location) []KeepDecision {
	now := time.Now()
	var out []KeepDecision
	for _, b := range backups {
		if b.Status == BackupAvailable || b.Status == BackupRestoring {
			out = append(out, KeepDecision{Backup: b})
		}
	}
	slices.SortStableFunc(out, func(a, b KeepDecision) int { return b.Backup.Created.Compare(a.Backup.Created) })
	rules := []struct {
		left   int
		what   string
		bucket func(n int, t time.Time) string // backups of one bucket are alternatives
	}{
		{k.Last, "last", func(n int, _ time.Time) string { return strconv.Itoa(n) }},
		{k.Hourly, "hourly", func(_ int, t time.Time) string { return t.Format("2006-01-02 15h -0700") }},
		{k.Daily, "daily", func(_ int, t time.Time) string { return t.Format(time.DateOnly) }},
		{k.Weekly, "weekly", func(_ int, t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d-W%02d", y, w) }},
		{k.Monthly, "monthly", func(_ int, t time.Time) string { return t.Format("2006-01") }},
		{k.Yearly, "yearly", func(_ int, t time.Time) string { return t.Format("2006") }},
	}
	reasons := make([][]string, len(out))
	for _, r := range rules {
		last := ""
		for i, d := range out {
			bucket := r.bucket(i, d.Backup.Created.In(zone))
			if r.left == 0 || bucket == last {
				continue
			}
			last = bucket
			r.left--
			reason := r.what
			if r.what != "last" {
				reason += " " + bucket
			}
			reasons[i] = append(reasons[i], reason)
		}
	}
	for i := range out {
		d := &out[i]
		if d.Backup.Status == BackupRestoring {
			reasons[i] = append(reasons[i], "it is being restored")
		}
		if until := d.Backup.RetainUntil; until.After(now) {
			reasons[i] = append(reasons[i], "it is retained until "+until.In(zone).Format(time.DateTime))
		}
		d.Keep = len(reasons[i]) > 0
		d.Why = strings.Join(reasons[i], ", ")
		if !d.Keep {
			d.Why = "nothing keeps it"
		}
	}
	return out
}
