package cinderapi

import (
	"net/http"
	"slices"
)

func typeRoutes() []route {
	return []route{
		{method: get, path: "types", do: (*call).listTypes},
		{method: get, path: "types/default", do: (*call).defaultType},
		{method: get, path: "types/{id}", do: (*call).showType},
		{method: get, path: "types/{id}/encryption", do: (*call).typeEncryption},
		{method: get, path: "types/{id}/extra_specs", do: (*call).typeSpecs},
	}
}

// typeBody is the body of a volume type. All are for everybody, and have no
// specifications.
func (c *call) typeBody(t Type) object {
	o := object{
		"id": t.ID, "name": t.Name, "description": orNull(t.Description),
		"is_public": true, "os-volume-type-access:is_public": true, "extra_specs": object{},
	}
	if c.caller.Admin {
		o["qos_specs_id"] = nil
	}
	return o
}

func (c *call) listTypes() (answer, error) {
	all := []object{}
	for _, t := range c.service().Types() {
		all = append(all, c.typeBody(t))
	}
	return ok("volume_types", all)
}

func (c *call) defaultType() (answer, error) {
	types := c.service().Types()
	i := slices.IndexFunc(types, func(t Type) bool { return t.Default })
	if i < 0 {
		return answer{}, &Fault{http.StatusNotFound, "Default volume type can not be found."}
	}
	return ok("volume_type", c.typeBody(types[i]))
}

// volumeType is the type that a path names.
func (c *call) volumeType() (Type, error) {
	types := c.service().Types()
	i := slices.IndexFunc(types, func(t Type) bool { return t.ID == canonical(c.params["id"]) })
	if i < 0 {
		return Type{}, NotFound("Volume type", clip(c.params["id"]))
	}
	return types[i], nil
}

func (c *call) showType() (answer, error) {
	t, err := c.volumeType()
	if err != nil {
		return answer{}, err
	}
	return ok("volume_type", c.typeBody(t))
}

func (c *call) typeSpecs() (answer, error) {
	if _, err := c.volumeType(); err != nil {
		return answer{}, err
	}
	return ok("extra_specs", object{})
}

func (c *call) typeEncryption() (answer, error) {
	if err := c.admin("volume_extension:volume_type_encryption:get"); err != nil {
		return answer{}, err
	}
	t, err := c.volumeType()
	if err != nil {
		return answer{}, err
	}
	body := object{}
	if t.Encrypted {
		// How is not the API's business; that it is so is.
		body = object{"volume_type_id": t.ID, "encryption_id": t.ID, "provider": "luks", "control_location": "front-end", "cipher": nil, "key_size": nil}
	}
	return answer{status: http.StatusOK, body: body}, nil
}
