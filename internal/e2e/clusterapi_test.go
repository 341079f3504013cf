package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// object is a JSON object.
type object map[string]any

// at follows keys.
func (o object) at(keys ...string) any {
	var v any = map[string]any(o)
	for _, k := range keys {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// each are the objects of a list.
func (o object) each(key string) (l []object) {
	all, _ := o[key].([]any)
	for _, x := range all {
		if m, ok := x.(map[string]any); ok {
			l = append(l, m)
		}
	}
	return l
}

// answer is that to a request of the API.
type answer struct {
	status int
	object
	took time.Duration
	err  error
}

// fault is the sentence of an answer that refuses.
func (a answer) fault() string {
	for k := range a.object {
		if s, ok := a.at(k, "message").(string); ok {
			return s
		}
	}
	return ""
}

func (a answer) String() string {
	return fmt.Sprintf("%d %v in %s, %v", a.status, a.object, a.took.Round(time.Millisecond), a.err)
}

// send makes a request from the node's own machine.
func (n *node) send(method, url, token string, body any) (a answer, header http.Header) {
	begun := time.Now()
	defer func() { a.took = time.Since(begun) }()
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return answer{err: err}, nil
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+n.addr+url, in)
	if err != nil {
		return answer{err: err}, nil
	}
	req.Header.Set("X-Auth-Token", token)
	req.Header.Set("OpenStack-API-Version", "volume 3.70")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return answer{err: err}, nil
	}
	defer resp.Body.Close()
	a = answer{status: resp.StatusCode, object: object{}}
	if err := json.NewDecoder(resp.Body).Decode(&a.object); err != nil && !errors.Is(err, io.EOF) {
		a.err = err
	}
	return a, resp.Header
}

// logIn gets a token of a user, which is good at all nodes.
func (c *cluster) logIn(users ...string) {
	c.t.Helper()
	for _, who := range users {
		a, header := c.nodes[0].send(http.MethodPost, "/identity/v3/auth/tokens", "", object{"auth": object{
			"identity": object{"methods": []string{"password"}, "password": object{"user": object{"name": who, "password": who + "-secret", "domain": object{"name": "Default"}}}},
			"scope":    object{"project": object{"name": who, "domain": object{"name": "Default"}}},
		}})
		if a.status != http.StatusCreated {
			c.t.Fatal(a)
		}
		for _, n := range c.nodes {
			n.token[who] = header.Get("X-Subject-Token")
		}
	}
}

// ask makes a request of the Block Storage API.
func (n *node) ask(who, method, path string, body any) answer {
	a, _ := n.send(method, "/volume/v3/"+path, n.token[who], body)
	return a
}

// asked is ask for what must have a status.
func (n *node) asked(want int, who, method, path string, body any) answer {
	n.t.Helper()
	a := n.ask(who, method, path, body)
	if a.status != want {
		n.t.Fatalf("%s: %s %s as %s: %v, want %d", n.name, method, path, who, a, want)
	}
	return a
}
