package cinderapi

import (
	"net/url"
	"time"
)

// projectURL is the URL of the caller's project below a path.
func (c *call) projectURL(below string) string {
	return c.base + below + url.PathEscape(c.caller.ProjectID)
}

// links are those of one thing: where it is, and where it is whatever the version.
func (c *call) links(plural, id string) []object {
	return []object{
		{"rel": "self", "href": c.projectURL("/volume/v3/") + "/" + plural + "/" + id},
		{"rel": "bookmark", "href": c.projectURL("/volume/") + "/" + plural + "/" + id},
	}
}

// summary is the short body of a thing.
func (c *call) summary(plural, id, name string) object {
	return object{"id": id, "name": orNull(name), "links": c.links(plural, id)}
}

// orNull is a text, or null when there is none.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// stamp is a time as Cinder writes it, or null when there is none.
func stamp(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000")
}

// pairs is metadata, never null.
func pairs(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
