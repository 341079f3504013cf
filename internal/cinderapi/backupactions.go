package cinderapi

import "net/http"

// backupActions are the actions on a backup.
var backupActions = map[string]func(*call, any) (answer, error){
	"os-force_delete": (*call).forceDeleteBackup,
	"os-reset_status": (*call).resetBackup,
}

func (c *call) forceDeleteBackup(any) (answer, error) {
	if err := c.admin("volume_extension:backup_admin_actions:force_delete"); err != nil {
		return answer{}, err
	}
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().DeleteBackup(c.ctx(), b.ID, true); err != nil {
		return answer{}, err
	}
	return accepted()
}

func (c *call) resetBackup(arg any) (answer, error) {
	if err := c.admin("volume_extension:backup_admin_actions:reset_status"); err != nil {
		return answer{}, err
	}
	f, err := argument("os-reset_status", arg, isReset)
	if err != nil {
		return answer{}, err
	}
	status, err := state("Backup", f.text("status"), []string{"available", "error"})
	if err != nil {
		return answer{}, err
	}
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().ResetBackup(c.ctx(), b.ID, status); err != nil {
		return answer{}, err
	}
	return accepted()
}

var isRestore = &schema{types: []string{"object", "null"}, props: map[string]*schema{"name": isText, "volume_id": isUUIDMaybe}}

func (c *call) restoreBackup() (answer, error) {
	f, err := c.body("restore", isRestore)
	if err != nil {
		return answer{}, err
	}
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	n := NewRestore{Name: f.name("name")}
	if f.text("volume_id") != "" {
		var v Volume
		if v, err = c.volume(f.text("volume_id")); err != nil {
			return answer{}, err
		}
		n.VolumeID = v.ID
	}
	r, err := c.service().Restore(c.ctx(), c.caller, b.ID, n)
	if err != nil {
		return answer{}, err
	}
	body := object{"backup_id": r.BackupID, "volume_id": r.VolumeID, "volume_name": r.VolumeName}
	return answer{status: http.StatusAccepted, body: object{"restore": body}}, nil
}

func (c *call) exportBackup() (answer, error) {
	if err := c.admin("backup:export-import"); err != nil {
		return answer{}, err
	}
	b, err := c.backup(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	r, err := c.service().ExportBackup(c.ctx(), b.ID)
	if err != nil {
		return answer{}, err
	}
	return ok("backup-record", object{"backup_service": r.Service, "backup_url": r.URL})
}

var isImport = &schema{types: []string{"object"}, required: []string{"backup_service", "backup_url"}, props: map[string]*schema{
	"backup_service": {types: []string{"string"}, maxLen: 255},
	"backup_url":     {types: []string{"string"}, minLen: 1, format: "base64", formatOK: isBase64},
}}

func (c *call) importBackup() (answer, error) {
	if err := c.admin("backup:backup-import"); err != nil {
		return answer{}, err
	}
	f, err := c.body("backup-record", isImport)
	if err != nil {
		return answer{}, err
	}
	b, err := c.service().ImportBackup(c.ctx(), c.caller, Record{Service: f.text("backup_service"), URL: f.text("backup_url")})
	if err != nil {
		return answer{}, err
	}
	c.object = b.ID
	return answer{status: http.StatusCreated, body: object{"backup": c.backupSummary(b)}}, nil
}
