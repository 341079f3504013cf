package identity

import "net/http"

// credentials takes what the methods that this service has need.
func (p *parser) credentials(a *authRequest, identity map[string]any) {
	if password := p.object(identity, "identity", "password"); password != nil {
		if user := p.object(password, "identity/password", "user"); user != nil {
			a.byUser = true
			a.user = p.ref(user, "identity/password/user")
			a.secret = p.text(user, "identity/password/user", "password")
		}
	}
	if token := p.object(identity, "identity", "token"); token != nil {
		if id := p.text(token, "identity/token", "id"); id != nil {
			a.token = *id
		} else if p.err == nil {
			p.err = refuse(http.StatusBadRequest, "'id' is a required property")
		}
	}
}

// scope takes what the token shall be for.
func (p *parser) scope(a *authRequest, auth map[string]any) {
	v, ok := auth["scope"]
	if !ok {
		return
	}
	if s, ok := v.(string); ok {
		if a.unscoped = s == "unscoped"; !a.unscoped {
			a.other = s
		}
		return
	}
	scope := p.object(auth, "", "scope")
	kinds := 0
	for _, kind := range []string{"project", "domain", "system", "OS-TRUST:trust", "unscoped"} {
		if _, ok := scope[kind]; !ok {
			continue
		}
		kinds++
		o := p.object(scope, "scope", kind)
		switch kind {
		case "project":
			r := p.ref(o, "scope/project")
			a.project = &r
		case "unscoped":
			a.unscoped = true
		default:
			a.other = kind
		}
	}
	if kinds != 1 && p.err == nil {
		p.err = expecting("one of project, domain, system, OS-TRUST:trust and unscoped", "scope")
	}
}
