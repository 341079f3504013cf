package identity

// sameRequests are those that Keystone and the service have to answer alike. A user or
// a project without a domain is not among them: Keystone asks for the domain. Nor are
// bodies that its schema refuses in Python's words.
func sameRequests() []request {
	const v3, pw = "/v3", `"password":"` + secret + `"`
	password := func(user, scope string) string {
		if scope != "" {
			scope = `,"scope":` + scope
		}
		return `{"auth":{"identity":{"methods":["password"],"password":{"user":{` + user + `}}}` + scope + `}}`
	}
	const demo = `"name":"demo","domain":{"id":"default"},` + pw
	byToken := func(token, scope string) string {
		return `{"auth":{"identity":{"methods":["token"],"token":{"id":"` + token + `"}},"scope":` + scope + `}}`
	}
	out := []request{{"GET", v3, "", "", ""}, {"GET", v3 + "/", "", "", ""}}
	for _, body := range []string{
		password(demo, ""), password(demo, `"unscoped"`), password(demo, `{"unscoped":{}}`), password(demo, inProject("other")),
		password(demo, inProject("hidden")), password(demo, inProject("nix")), password(demo, `{"project":{"id":"{project demo}"}}`),
		password(demo, `{"project":{"id":"nix"}}`), password(demo, `{"project":{}}`), password(demo, `{"domain":{"id":"default"}}`),
		password(demo, `{"system":{"all":true}}`), password(demo, `{"project":{"name":"demo","domain":{}}}`),
		password(`"id":"{user demo}",`+pw, ""), password(`"id":"nix",`+pw, ""), password(`"id":"{user loner}",`+pw, ""),
		password(`"name":"demo","domain":{"name":"Default"},`+pw, ""), password(`"name":"demo","domain":{"id":"nix"},`+pw, ""),
		password(`"name":"demo","domain":{},`+pw, ""), password(`"name":"nix","domain":{"id":"default"},`+pw, ""),
		password(`"name":"demo","domain":{"id":"default"},"password":"wrong"`, ""), password(`"name":"demo","domain":{"id":"default"}`, ""),
		password(pw, ""), `{"auth":{"identity":{"methods":[]}}}`, `{"auth":{"identity":{"methods":["password"]}}}`,
		`{"auth":{"identity":{"methods":["token"]}}}`, `{}`, `[]`, `{"auth":`, `x`,
		byToken("<demo>", inProject("other")), byToken("<demo>", inProject("hidden")), byToken("<demo unscoped>", inProject("demo")), byToken("<loner>", `"unscoped"`),
	} {
		out = append(out, request{"POST", v3 + "/auth/tokens", "", "", body})
	}
	out = append(out, request{"POST", v3 + "/auth/tokens?nocatalog", "", "", password(demo, "")})
	for _, who := range []string{"", "wrong", "admin", "demo", "demo unscoped", "loner"} {
		for _, path := range []string{
			"/projects", "/projects?name=demo", "/projects?name=nix", "/projects?domain_id=nix", "/projects?enabled=false", "/projects/{project demo}", "/projects/{project other}", "/projects/nix",
			"/users", "/users?name=demo", "/users/{user demo}", "/users/{user admin}", "/users/nix", "/users/{user demo}/projects", "/users/{user admin}/projects",
			"/auth/projects", "/auth/catalog", "/domains", "/domains?name=nix", "/domains/default", "/domains/nix",
		} {
			out = append(out, request{"GET", v3 + path, who, "", ""})
		}
		for _, about := range []string{"", "nix", "<demo>", "<loner>", "<demo unscoped>"} {
			out = append(out, request{"GET", v3 + "/auth/tokens", who, about, ""}, request{"HEAD", v3 + "/auth/tokens", who, about, ""})
		}
	}
	for _, who := range []string{"", "wrong", "loner"} {
		out = append(out, request{"DELETE", v3 + "/auth/tokens", who, "<demo>", ""})
	}
	return append(out,
		request{"DELETE", v3 + "/auth/tokens", "demo", "<demo>", ""},
		request{"GET", v3 + "/auth/tokens", "demo", "<demo>", ""},
		request{"GET", v3 + "/auth/tokens", "admin", "<demo>", ""},
		request{"DELETE", v3 + "/auth/tokens", "admin", "<demo>", ""},
		request{"DELETE", v3 + "/auth/tokens", "admin", "<loner>", ""},
		request{"GET", v3 + "/auth/projects", "loner", "", ""},
	)
}
