package cinderapi

import (
	"net/http"
	"slices"
	"strings"
)

// volumeActions are the actions on a volume.
var volumeActions = map[string]func(*call, any) (answer, error){
	"os-extend":       (*call).extendVolume,
	"os-reset_status": (*call).resetVolume,
	"os-force_delete": (*call).forceDeleteVolume,
	"os-set_bootable": (*call).setBootable,
}

var (
	isExtend      = &schema{types: []string{"object"}, required: []string{"new_size"}, props: map[string]*schema{"new_size": isSize}}
	isVolumeReset = &schema{types: []string{"object"}, props: map[string]*schema{"status": isText, "attach_status": isText, "migration_status": isText}}
	isSetBootable = &schema{types: []string{"object"}, required: []string{"bootable"}, props: map[string]*schema{"bootable": isBool}}
)

func (c *call) extendVolume(arg any) (answer, error) {
	f, err := argument("os-extend", arg, isExtend)
	if err != nil {
		return answer{}, err
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if v.Status == "in-use" && !c.since(42) {
		return answer{}, Invalid("Invalid volume: Volume %s status must be 'available' to extend, currently in-use.", v.ID)
	}
	if err := c.service().ExtendVolume(c.ctx(), v.ID, f.integer("new_size")); err != nil {
		return answer{}, err
	}
	return accepted()
}

// volumeStates are the states that a volume may be set to.
var volumeStates = []string{"creating", "available", "in-use", "backing-up", "restoring-backup", "error", "error_restoring", "deleting", "error_deleting"}

func (c *call) resetVolume(arg any) (answer, error) {
	if err := c.admin("volume_extension:volume_admin_actions:reset_status"); err != nil {
		return answer{}, err
	}
	f, err := argument("os-reset_status", arg, isVolumeReset)
	if err != nil {
		return answer{}, err
	}
	status := f.text("status")
	switch {
	case status == "" && f.text("attach_status") == "" && f.text("migration_status") == "":
		return answer{}, Invalid("Must specify 'status', 'attach_status' or 'migration_status' for update.")
	case f.text("attach_status") != "" || f.text("migration_status") != "":
		return answer{}, Invalid("Only 'status' can be set: who uses a volume is known from its connections, and volumes do not migrate.")
	}
	if status, err = state("Volume", status, volumeStates); err != nil {
		return answer{}, err
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().ResetVolume(c.ctx(), v.ID, status); err != nil {
		return answer{}, err
	}
	return accepted()
}

// state is a status in its usual form, when it is one of those that may be set.
func state(what, status string, valid []string) (string, error) {
	if s := strings.ToLower(status); slices.Contains(valid, s) {
		return s, nil
	}
	return "", Invalid("%s status: %s is invalid, valid statuses are: [%s].", what, clip(status), quoted(valid))
}

func (c *call) forceDeleteVolume(any) (answer, error) {
	if err := c.admin("volume_extension:volume_admin_actions:force_delete"); err != nil {
		return answer{}, err
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	if err := c.service().DeleteVolume(c.ctx(), v.ID, true); err != nil {
		return answer{}, err
	}
	return accepted()
}

func (c *call) setBootable(arg any) (answer, error) {
	f, err := argument("os-set_bootable", arg, isSetBootable)
	if err != nil {
		return answer{}, err
	}
	v, err := c.volume(c.params["id"])
	if err != nil {
		return answer{}, err
	}
	bootable := f.truth("bootable")
	if _, err := c.service().UpdateVolume(c.ctx(), v.ID, Update{Bootable: &bootable}); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK}, nil
}
