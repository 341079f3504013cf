package identity

import (
	"net/http"
	"slices"
)

// The one domain.
const (
	domainID   = "default"
	domainName = "Default"
)

// logIn is POST /v3/auth/tokens.
func (c *call) logIn() error {
	body, err := readBody(c.w, c.r)
	if err != nil {
		return err
	}
	a, err := parseAuth(body)
	if err != nil {
		return err
	}
	d, u, parent, err := c.credentials(a)
	if err != nil {
		return err
	}
	p, err := scopeOf(d, u, a)
	if err != nil {
		return err
	}
	var m methods
	if slices.Contains(a.methods, "password") {
		m |= methodPassword
	}
	if parent != nil {
		m |= methodToken | parent.methods
	}
	x, err := c.s.issue(d, u, p, m, parent)
	if err != nil {
		return err
	}
	c.w.Header().Set("X-Subject-Token", d.sign(x.token))
	return c.sendToken(http.StatusCreated, x)
}

// credentials finds out who asks for a token. All methods that are given have to be
// right, and of one user. parent is the token of the method token.
func (c *call) credentials(a *authRequest) (d *Directory, u *User, parent *token, err error) {
	if len(a.methods) == 0 {
		return nil, nil, nil, unauthorized()
	}
	for _, m := range a.methods {
		switch m {
		case "token":
			x, serr := c.s.subject(a.token)
			if serr != nil {
				return nil, nil, nil, serr
			}
			d, u, parent = x.dir, x.user, &x.token
		case "password":
		default:
			return nil, nil, nil, refuse(http.StatusUnauthorized, "Attempted to authenticate with an unsupported method.")
		}
	}
	if !slices.Contains(a.methods, "password") {
		return d, u, parent, nil
	}
	try := attempt{addr: source(c.r)}
	switch {
	case a.secret == nil, a.user.domain != nil && *a.user.domain != domainID, len(*a.secret) > MaxPassword:
		return nil, nil, nil, unauthorized()
	case a.user.id != nil:
		try.id = *a.user.id
	default:
		try.name = *a.user.name
	}
	if len(try.id)+len(try.name) > maxUserName {
		return nil, nil, nil, unauthorized()
	}
	try.password = []byte(*a.secret)
	pd, pu, err := c.s.login(c.r.Context(), try)
	if err != nil {
		return nil, nil, nil, err
	}
	if u != nil && u.ID != pu.ID {
		return nil, nil, nil, unauthorized()
	}
	return pd, pu, parent, nil
}

// scopeOf is the project that a token shall be for: nil = none.
func scopeOf(d *Directory, u *User, a *authRequest) (*Project, error) {
	switch {
	case a.other != "": // nobody has a role there
		return nil, unauthorized()
	case a.unscoped:
		return nil, nil
	case a.project == nil:
		if p := d.projectByID(u.DefaultProject); p != nil && len(u.Roles(p.ID)) > 0 {
			return p, nil
		}
		return nil, nil
	}
	var p *Project
	switch {
	case a.project.id != nil:
		p = d.projectByID(*a.project.id)
	case a.project.domain == nil || *a.project.domain == domainID:
		p = d.projectByName(*a.project.name)
	}
	if p == nil || len(u.Roles(p.ID)) == 0 {
		return nil, unauthorized()
	}
	return p, nil
}

// subject is the session of a token that somebody asks about.
func (s *Service) subject(text string) (*session, error) {
	if text == "" {
		return nil, refuse(http.StatusNotFound, "No token in the request")
	}
	x, err := s.session(text)
	if e, ok := asError(err); ok && e.Status == http.StatusUnauthorized {
		return nil, refuse(http.StatusNotFound, "Failed to validate token")
	}
	return x, err
}

// caller is the session of who asks.
func (c *call) caller() (*session, error) {
	text, err := tokenOf(c.r)
	if err != nil {
		return nil, err
	}
	return c.s.session(text)
}

// may refuses what Keystone's default policy refuses.
func may(allowed bool, action string) error {
	if allowed {
		return nil
	}
	return refuse(http.StatusForbidden, "You are not authorized to perform the requested action: identity:%s.", action)
}

// admin reports whether a session may read everything. As in Keystone, a role counts in
// the project that the token is for.
func (x *session) admin() bool { return x.user.Admin && x.project != nil }

// about is the session that the request asks about, if the caller may: their own, or
// anybody's for an administrator.
func (c *call) about(action string) (*session, string, error) {
	me, err := c.caller()
	if err != nil {
		return nil, "", err
	}
	text := c.r.Header.Get("X-Subject-Token")
	if text == "" && !me.admin() { // nobody's own
		return nil, "", may(false, action)
	}
	x, err := c.s.subject(text)
	if err != nil {
		return nil, "", err
	}
	return x, text, may(me.admin() || x.user.ID == me.user.ID, action)
}

// validate is GET and HEAD /v3/auth/tokens.
func (c *call) validate() error {
	action := "validate_token"
	if c.r.Method == http.MethodHead {
		action = "check_token"
	}
	x, text, err := c.about(action)
	if err != nil {
		return err
	}
	c.w.Header().Set("X-Subject-Token", text)
	return c.sendToken(http.StatusOK, x)
}

// revoke is DELETE /v3/auth/tokens.
func (c *call) revoke() error {
	x, _, err := c.about("revoke_token")
	if err != nil {
		return err
	}
	if err = c.s.revoked.add(x.token, c.s.now().UnixMicro()); err != nil {
		return unavailable("The token counts no more, but that could not be recorded: it may count again when the service is started again.", err)
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
