package identity

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// keystoneFor is how long an answer counts, if nothing else is said: for as long a
	// token that Keystone has revoked meanwhile still opens.
	keystoneFor     = 5 * time.Minute
	keystoneEntries = 4096
	keystoneTimeout = 10 * time.Second
	keystoneAtOnce  = 16
	maxKeystoneBody = 1 << 20
	maxForeignToken = 8 << 10
)

// KeystoneOptions of [NewKeystone].
type KeystoneOptions struct {
	Transport http.RoundTripper // nil = a plain one of its own; it has to trust the server's certificate
	Now       func() time.Time  // nil = time.Now
	Remember  *time.Duration    // how long an answer counts: nil = five minutes, 0 = for its request alone
}

// Keystone is an [Authenticator] that asks an OpenStack Identity service. Of a token it
// sends nothing but the token itself, which may ask about itself by Keystone's default
// policy, so that it needs no account there. An answer counts for a time that is set, and
// never longer than the token.
type Keystone struct {
	root string // URL of /v3
	http *http.Client
	now  func() time.Time
	busy chan struct{} // a place for each request under way
	wait time.Duration // for the answer to one, and for a place
	keep time.Duration // for which an answer counts

	mu   sync.Mutex
	seen *recent[[sha256.Size]byte, remembered]
}

// remembered is a caller, by the digest of their token.
type remembered struct {
	caller Caller
	until  time.Time
}

var _ Authenticator = (*Keystone)(nil)

// NewKeystone returns an authenticator for the Identity service at an address such as
// https://keystone.example:5000, with or without /v3. It does not connect.
func NewKeystone(address string, o KeystoneOptions) (*Keystone, error) {
	address, err := publicURL(address)
	if err != nil || address == "" {
		return nil, refuse(http.StatusBadRequest, "the address of Keystone is no URL like https://keystone.example:5000")
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			TLSHandshakeTimeout:   keystoneTimeout,
			ResponseHeaderTimeout: keystoneTimeout,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   keystoneAtOnce,
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	keep := keystoneFor
	if o.Remember != nil {
		keep = *o.Remember
	}
	return &Keystone{
		root: strings.TrimSuffix(address, "/v3") + "/v3",
		http: &http.Client{
			Transport: o.Transport,
			// A token goes where the operator said, and nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		now:  o.Now,
		busy: make(chan struct{}, keystoneAtOnce),
		wait: keystoneTimeout,
		keep: keep,
		seen: newRecent[[sha256.Size]byte, remembered](keystoneEntries),
	}, nil
}

// Authenticate implements [Authenticator]. The token has to be scoped to a project.
func (k *Keystone) Authenticate(r *http.Request) (Caller, error) {
	text, err := tokenOf(r)
	if err != nil {
		return Caller{}, err
	}
	if len(text) > maxForeignToken || !printable(text) {
		return Caller{}, unauthorized()
	}
	key := sha256.Sum256([]byte(text))
	if c, ok := k.recall(key); ok {
		return c, nil
	}
	asked := k.now()
	c, err := k.ask(r.Context(), text)
	switch {
	case err != nil:
		return Caller{}, err
	case !k.now().Before(c.ExpiresAt):
		return Caller{}, unauthorized()
	case c.ProjectID == "":
		return Caller{}, unscoped()
	}
	until := asked.Add(k.keep)
	if c.ExpiresAt.Before(until) {
		until = c.ExpiresAt
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen.put(key, remembered{c, until})
	return c, nil
}

func (k *Keystone) recall(key [sha256.Size]byte) (Caller, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.seen.get(key)
	if !ok {
		return Caller{}, false
	}
	if !k.now().Before(m.until) {
		k.seen.drop(key)
		return Caller{}, false
	}
	c := m.caller
	c.Roles = slices.Clone(c.Roles)
	return c, true
}

// ask asks Keystone about a token.
func (k *Keystone) ask(ctx context.Context, text string) (Caller, error) {
	body, err := k.get(ctx, "/auth/tokens?nocatalog", text)
	if err != nil {
		return Caller{}, err
	}
	c, err := parseKeystone(body)
	if err != nil {
		return Caller{}, silent(err)
	}
	return c, nil
}

// get sends a request with a token, and about it.
func (k *Keystone) get(ctx context.Context, path, token string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, k.wait)
	defer cancel()
	select {
	case k.busy <- struct{}{}:
		defer func() { <-k.busy }()
	case <-ctx.Done():
		return nil, silent(ctx.Err())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.root+path, http.NoBody)
	if err != nil {
		return nil, silent(err)
	}
	req.Header.Set("X-Auth-Token", token)
	req.Header.Set("X-Subject-Token", token)
	req.Header.Set("Accept", "application/json")
	resp, err := k.http.Do(req)
	if err != nil {
		return nil, silent(err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeystoneBody+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, silent(err)
	}
	// A proxy or a wrong address answers so as well, but not in Keystone's form.
	known := keystoneError(body)
	switch {
	case resp.StatusCode == http.StatusOK && len(body) > maxKeystoneBody:
		return nil, silent(fmt.Errorf("the answer has more than %d bytes", maxKeystoneBody))
	case resp.StatusCode == http.StatusOK:
		return body, nil
	case !known && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusNotFound):
		return nil, silent(fmt.Errorf("%s answers %s and is not Keystone", k.root, resp.Status))
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusNotFound:
		return nil, unauthorized()
	case known && resp.StatusCode == http.StatusForbidden:
		return nil, silent(fmt.Errorf("%s: %w", k.root, errKeystoneForbids))
	default:
		return nil, silent(fmt.Errorf("%s answers %s", k.root, resp.Status))
	}
}

// silent is for when Keystone cannot be asked.
func silent(cause error) *Error {
	return unavailable("The Identity service that checks tokens does not answer: try again later.", cause)
}

// errKeystoneForbids is the cause when Keystone knows the token, and does not let it ask.
var errKeystoneForbids = errors.New("the policy of Keystone does not allow the question")

func keystoneError(body []byte) bool {
	var v struct {
		Error struct {
			Code int `json:"code"`
		} `json:"error"`
	}
	return json.Unmarshal(body, &v) == nil && v.Error.Code != 0
}

// parseKeystone reads the answer about a token.
func parseKeystone(body []byte) (Caller, error) {
	type named struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	}
	var v struct {
		Token struct {
			Expires time.Time `json:"expires_at"`
			User    named     `json:"user"`
			Project named     `json:"project"`
			Roles   []named   `json:"roles"`
		} `json:"token"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return Caller{}, fmt.Errorf("the answer cannot be understood: %w", err)
	}
	t := v.Token
	if t.User.ID == "" || t.Expires.IsZero() {
		return Caller{}, errors.New("the answer names no user or no end of the token")
	}
	c := Caller{UserID: t.User.ID, UserName: t.User.Name, ProjectID: t.Project.ID, ProjectName: t.Project.Name, ExpiresAt: t.Expires, Keystone: true}
	for _, r := range t.Roles {
		c.Roles = append(c.Roles, r.Name)
		c.Admin = c.Admin || strings.EqualFold(r.Name, roleAdmin)
	}
	return c, nil
}
