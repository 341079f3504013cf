package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"
)

// ProjectID returns the ID of the project that has this ID or name. It asks as the one
// who sends r, whom [Keystone.Authenticate] has let in. What looks like an ID is taken
// as one, also when there is no such project any more.
func (k *Keystone) ProjectID(r *http.Request, ref string) (string, error) {
	if uuid.Validate(ref) == nil {
		return ref, nil
	}
	token, err := tokenOf(r)
	if err != nil {
		return "", err
	}
	body, err := k.get(r.Context(), "/projects?name="+url.QueryEscape(ref), token)
	if errors.Is(err, errKeystoneForbids) {
		return "", refuse(http.StatusForbidden, "Keystone does not allow this user to look for the project %s: give its ID.", ref)
	}
	if err != nil {
		return "", err
	}
	var found struct {
		Projects *[]struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"projects"`
	}
	if err = json.Unmarshal(body, &found); err != nil || found.Projects == nil {
		return "", silent(fmt.Errorf("the answer about a project cannot be understood: %w", err))
	}
	id := ""
	for _, p := range *found.Projects {
		switch {
		case !strings.EqualFold(p.Name, ref): // some databases of Keystone do not tell them apart
			continue
		case id != "":
			return "", refuse(http.StatusBadRequest, "There are several projects %q: give the ID of the one that is meant.", ref)
		}
		id = p.ID
	}
	if id == "" {
		return "", refuse(http.StatusNotFound, "Project %s could not be found.", ref)
	}
	return id, nil
}
