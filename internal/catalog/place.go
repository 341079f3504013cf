package catalog

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// place is where a catalog is: a file, or else a database of PostgreSQL.
type place struct {
	file     string
	postgres *pgx.ConnConfig
}

var scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

// Check refuses an address of a catalog that [Open] would refuse without looking.
func Check(where string) error {
	if _, err := parsePlace(where); err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	return nil
}

// HasPassword says whether an address of a catalog may have a password in it.
func HasPassword(where string) bool { return isPostgres(where) && secret(where) }

// parsePlace reads what [Open] is given.
func parsePlace(where string) (place, error) {
	switch file, sqlite := strings.CutPrefix(where, "sqlite:"); {
	case isPostgres(where):
		cfg, err := parsePostgres(where)
		return place{postgres: cfg}, err
	case sqlite && scheme.MatchString(where) && !strings.HasPrefix(file, "///"):
		// "sqlite://catalog.db" would be a file in the root folder.
		return place{}, errors.New("an address with sqlite: is followed by the file: sqlite:FILE")
	case sqlite && file == "" || where == "":
		return place{}, errors.New("no file is named: give a file, sqlite:FILE or postgres://USER@HOST/DATABASE")
	case sqlite:
		return place{file: file}, nil
	case scheme.MatchString(where):
		return place{}, fmt.Errorf("%s is neither sqlite nor postgres: give a file, sqlite:FILE or postgres://USER@HOST/DATABASE", scheme.FindString(where))
	default:
		return place{file: where}, nil
	}
}

func isPostgres(where string) bool {
	return strings.HasPrefix(where, "postgres://") || strings.HasPrefix(where, "postgresql://")
}

// errAddress is all that is said of an address that may have a password in it:
// where it cannot be understood nobody knows which part that is.
var errAddress = errors.New("the address of its database cannot be understood: it is postgres://USER@HOST:PORT/DATABASE, with %XX for each odd character; the password may be in PGPASSWORD or PGPASSFILE instead")

func parsePostgres(where string) (*pgx.ConnConfig, error) {
	if stray(where) {
		return nil, errAddress
	}
	cfg, err := pgx.ParseConfig(where)
	switch {
	case err != nil && secret(where):
		return nil, errAddress
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", errAddress, err)
	default:
		return cfg, nil
	}
}

// stray says whether an @ is left in an address behind the one that ends user and
// password: a password with an odd character was cut there, and what follows
// would be shown as host or database.
func stray(where string) bool {
	_, rest, _ := strings.Cut(where, "://")
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	rest, _, _ = strings.Cut(rest, "?")
	return strings.Contains(rest, "@")
}

// secret says whether an address may have a password in it.
func secret(where string) bool {
	_, rest, _ := strings.Cut(where, "://")
	if i := strings.LastIndex(rest, "@"); i >= 0 && strings.Contains(rest[:i], ":") {
		return true
	}
	plain, err := url.QueryUnescape(rest)
	return err != nil || strings.Contains(strings.ToLower(plain), "password")
}

// display is how a database is named in errors and logs.
func display(cfg *pgx.ConnConfig) string {
	u := url.URL{Scheme: "postgres", User: url.User(cfg.User), Path: "/" + cfg.Database}
	if strings.HasPrefix(cfg.Host, "/") { // the folder of a socket
		u.RawQuery = "host=" + cfg.Host
	} else {
		u.Host = fmt.Sprintf("%s:%d", cfg.Host, cfg.Port)
	}
	return u.String()
}
