package identity

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// tokenLifetime is Keystone's default.
const tokenLifetime = time.Hour

// Options of a [Service].
type Options struct {
	File      string           // the users file
	PublicURL string           // where clients find this agent, such as https://backup.example:8776; empty = where the request went
	FS        vfs.FS           // nil = the operating system's
	Logger    *slog.Logger     // nil = nothing is logged
	Now       func() time.Time // nil = time.Now
}

// Service is the built-in identity service. As an [Authenticator] it takes its own
// tokens in X-Auth-Token; as a handler it answers what the routes in routes.go say.
// It is safe for concurrent use.
type Service struct {
	users   *Users
	revoked *revocations
	limit   *limiter
	hashing *hashing
	public  string // without a slash at its end; empty = from the request
	log     *slog.Logger
	now     func() time.Time
	routes  []route
}

var (
	_ Authenticator = (*Service)(nil)
	_ http.Handler  = (*Service)(nil)
)

// New returns a service over a users file, which has to be there.
func New(o Options) (*Service, error) {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	public, err := publicURL(o.PublicURL)
	if err != nil {
		return nil, err
	}
	users, err := OpenUsers(o.FS, o.File)
	if err != nil {
		return nil, err
	}
	gone, err := openRevocations(o.FS, o.File)
	if err != nil {
		return nil, err
	}
	s := &Service{users: users, revoked: gone, limit: newLimiter(), hashing: newHashing(), public: public, log: o.Logger, now: o.Now}
	s.routes = s.table()
	return s, nil
}

// session is a token that counts, with what it stands for.
type session struct {
	token
	dir     *Directory
	user    *User
	project *Project // nil = unscoped
}

// directory is what the users file says now. The sentence for users does not say what
// is wrong with it.
func (s *Service) directory() (*Directory, error) {
	d, err := s.users.Current()
	if err != nil {
		return nil, unavailable("The users file of this service cannot be used: its operator has to look at it.", err)
	}
	return d, nil
}

// ProjectID returns the ID of the project with this ID or name, "" if there is none.
func (s *Service) ProjectID(ref string) string {
	d, err := s.directory()
	if err != nil {
		return ""
	}
	p, err := d.Project(ref)
	if err != nil {
		return ""
	}
	return p.ID
}

// session checks a token. ErrUnauthorized = it does not count.
func (s *Service) session(text string) (*session, error) {
	d, err := s.directory()
	if err != nil {
		return nil, err
	}
	t, err := d.verify(text)
	if err != nil {
		return nil, unauthorized()
	}
	x := &session{token: t, dir: d, user: d.userByID(t.user.String())}
	switch {
	case s.now().UnixMicro() >= t.expires, x.user == nil, s.revoked.holds(t):
		return nil, unauthorized()
	case d.generationOf(x.user) != t.generation:
		return nil, unauthorized()
	case t.project == ident{}:
		return x, nil
	}
	if x.project = d.projectByID(t.project.String()); x.project == nil || len(x.user.Roles(x.project.ID)) == 0 {
		return nil, unauthorized()
	}
	return x, nil
}

// issue makes a token for a user whose credentials were right. Of parent, nil if there
// is none, it takes the end and the chain.
func (s *Service) issue(d *Directory, u *User, p *Project, m methods, parent *token) (*session, error) {
	now := s.now()
	t := token{methods: m, issued: now.UnixMicro(), expires: now.Add(tokenLifetime).UnixMicro(), generation: d.generationOf(u)}
	var ok bool
	if t.user, ok = parseIdent(u.ID); !ok {
		return nil, fmt.Errorf("user %q has no ID", u.Name)
	}
	if p != nil {
		if t.project, ok = parseIdent(p.ID); !ok {
			return nil, fmt.Errorf("project %q has no ID", p.Name)
		}
	}
	var err error
	if t.audit, err = newAudit(); err != nil {
		return nil, err
	}
	if parent != nil {
		t.expires, t.parent = parent.expires, parent.audit
		if parent.parent != (ident{}) {
			t.parent = parent.parent
		}
	}
	return &session{token: t, dir: d, user: u, project: p}, nil
}

// Authenticate implements [Authenticator]. The token has to be scoped to a project.
func (s *Service) Authenticate(r *http.Request) (Caller, error) {
	text, err := tokenOf(r)
	if err != nil {
		return Caller{}, err
	}
	x, err := s.session(text)
	if err != nil {
		return Caller{}, err
	}
	if x.project == nil {
		return Caller{}, unscoped()
	}
	return callerOf(x.user, x.project, micros(x.expires)), nil
}

func unscoped() *Error {
	return refuse(http.StatusForbidden, "The token is not for a project: ask for one with a project, as by --os-project-name or OS_PROJECT_NAME.")
}

func callerOf(u *User, p *Project, expires time.Time) Caller {
	return Caller{
		UserID: u.ID, UserName: u.Name, ProjectID: p.ID, ProjectName: p.Name,
		Admin: u.Admin, Roles: u.Roles(p.ID), ExpiresAt: expires,
	}
}
