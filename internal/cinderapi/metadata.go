package cinderapi

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"strings"
)

// owner is a thing with metadata that a call is about.
type owner struct {
	metadata map[string]string
	set      func(map[string]string) (map[string]string, error) // returns what is stored then
}

// metadataRoutes are the calls for the metadata of things: plural as in the path,
// what as in the audit log.
func metadataRoutes(plural, what string, of func(*call) (owner, error)) []route {
	all, one := plural+"/{id}/metadata", plural+"/{id}/metadata/{key}"
	change := func(method, path string, do func(*call, owner) (answer, error)) route {
		return route{method: method, path: path, action: what + ".metadata", object: what, do: func(c *call) (answer, error) {
			// The body first: nobody waits for a slow client. What is wrong with it is
			// told by who asks for it again.
			if method != del {
				_, _ = c.decode()
			}
			// From the reading to the writing nobody else writes.
			c.api.metadata.Lock()
			defer c.api.metadata.Unlock()
			o, err := of(c)
			if err != nil {
				return answer{}, err
			}
			return do(c, o)
		}}
	}
	return []route{
		{method: get, path: all, do: func(c *call) (answer, error) {
			o, err := of(c)
			if err != nil {
				return answer{}, err
			}
			a, err := ok("metadata", o.metadata)
			if c.since(15) {
				a.header = http.Header{"Etag": {`"` + etag(o.metadata) + `"`}}
			}
			return a, err
		}},
		change(post, all, (*call).addMetadata),
		change(put, all, (*call).replaceMetadata),
		{method: get, path: one, do: func(c *call) (answer, error) {
			o, err := of(c)
			if err != nil {
				return answer{}, err
			}
			v, there := o.metadata[c.params["key"]]
			if !there {
				return answer{}, noMetadata()
			}
			return ok("meta", object{c.params["key"]: v})
		}},
		change(put, one, (*call).setMetadata),
		change(del, one, (*call).removeMetadata),
	}
}

func noMetadata() *Fault {
	return &Fault{http.StatusNotFound, "Metadata item was not found"}
}

// etag tells one content of metadata from another.
func etag(m map[string]string) string {
	h := sha256.New()
	for _, k := range sortedKeys(m) {
		// Neither keys nor values have a NUL.
		h.Write([]byte(k + "\x00" + m[k] + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// unchanged refuses a change of what is not any more what the client has read, if
// it says what that was.
func (c *call) unchanged(o owner) error {
	match := c.r.Header.Get("If-Match")
	if !c.since(15) || match == "" || match == "*" || strings.Contains(match, etag(o.metadata)) {
		return nil
	}
	return &Fault{http.StatusPreconditionFailed, "The metadata was changed since it was read."}
}

func (c *call) addMetadata(o owner) (answer, error) {
	f, err := c.body("metadata", isMetadata)
	if err != nil {
		return answer{}, err
	}
	m := maps.Clone(o.metadata)
	maps.Copy(m, f.pairs())
	return o.store(m)
}

func (c *call) replaceMetadata(o owner) (answer, error) {
	f, err := c.body("metadata", isMetadata)
	if err != nil {
		return answer{}, err
	}
	if err := c.unchanged(o); err != nil {
		return answer{}, err
	}
	return o.store(f.pairs())
}

func (c *call) setMetadata(o owner) (answer, error) {
	f, err := c.body("meta", isMetadataItem)
	if err != nil {
		return answer{}, err
	}
	if err := c.unchanged(o); err != nil {
		return answer{}, err
	}
	key := c.params["key"]
	if !f.has(key) {
		return answer{}, Invalid("Request body and URI mismatch")
	}
	m := maps.Clone(o.metadata)
	m[key] = f.text(key)
	if _, err := o.store(m); err != nil {
		return answer{}, err
	}
	return ok("meta", object{key: f.text(key)})
}

func (c *call) removeMetadata(o owner) (answer, error) {
	m := maps.Clone(o.metadata)
	if _, there := m[c.params["key"]]; !there {
		return answer{}, noMetadata()
	}
	delete(m, c.params["key"])
	if _, err := o.store(m); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK}, nil
}

// store writes metadata and answers with all of it.
func (o owner) store(m map[string]string) (answer, error) {
	if len(m) > maxPairs {
		return answer{}, Invalid("Metadata may have %d items: remove some first.", maxPairs)
	}
	stored, err := o.set(m)
	if err != nil {
		return answer{}, err
	}
	return ok("metadata", pairs(stored))
}

func (c *call) volumeMetadata() (owner, error) {
	v, err := c.volume(c.params["id"])
	return owner{pairs(v.Metadata), func(m map[string]string) (map[string]string, error) {
		then, failed := c.service().UpdateVolume(c.ctx(), v.ID, Update{Metadata: &m})
		return then.Metadata, failed
	}}, err
}

func (c *call) snapshotMetadata() (owner, error) {
	s, err := c.snapshot(c.params["id"])
	return owner{pairs(s.Metadata), func(m map[string]string) (map[string]string, error) {
		then, failed := c.service().UpdateSnapshot(c.ctx(), s.ID, Update{Metadata: &m})
		return then.Metadata, failed
	}}, err
}
