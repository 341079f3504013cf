// Package lint holds the checks on the source tree that run as tests.
package lint

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cairnbackup/cairn/"

// layers is the architecture: every package of this module, bottom layer
// first, with the packages of this module that it may import. A package
// imports only packages listed above it.
var layers = []struct{ pkg, imports string }{
	// Leaves: data structures, codecs and seams. Standard library only, plus
	// the third-party module that each of them wraps.
	{"internal/vfs", ""},
	{"internal/chunk", ""},
	{"internal/objstore", ""},
	{"internal/catalog", ""},
	{"internal/needs", ""},
	{"internal/tlstest", ""},
	{"internal/catalog/pgtest", "internal/needs"},
	{"internal/identity/keystonetest", "internal/needs"},
	{"internal/guestvm/wire", ""},
	{"internal/guestvm/guest", "internal/guestvm/wire"},
	{"internal/guestvm", "internal/guestvm/wire internal/needs"},
	{"internal/unixhttp", ""},
	{"internal/attributes", ""},
	{"internal/priority", ""},
	{"internal/protocol/explore", ""},
	{"internal/protocol", "internal/protocol/explore"},

	// One leaf away.
	{"internal/quiesce", "internal/priority"},
	{"internal/jsonfile", "internal/vfs"},
	{"blockmap", "internal/vfs"},
	{"nbd", "blockmap"},
	{"internal/tcpdoor", "nbd"},
	{"internal/identity", "internal/vfs"},
	{"internal/objstore/memstore", "internal/objstore"},
	{"internal/objstore/dirstore", "internal/objstore internal/vfs"},
	{"internal/objstore/s3store", "internal/objstore"},
	{"internal/objstore/retry", "internal/objstore"},
	{"internal/objstore/limit", "internal/objstore"},
	{"internal/objstore/storetest", "internal/objstore"},
	{"internal/objstore/s3test", "internal/needs"},
	{"internal/pack", "internal/chunk"},
	{"internal/manifest", "blockmap internal/chunk"},
	{"internal/fusefs", "blockmap"},
	{"internal/volume", "blockmap internal/attributes internal/vfs"},
	{"internal/restore", "blockmap"},
	{"internal/qemu", "nbd"},
	{"internal/backup", "blockmap internal/chunk internal/manifest"},

	// The data plane, and what is stored and how it comes back.
	{"internal/serve", "blockmap internal/attributes internal/tcpdoor internal/unixhttp internal/vfs internal/volume nbd"},
	{"internal/repository", "blockmap internal/attributes internal/chunk internal/manifest internal/objstore internal/pack internal/vfs"},

	{"internal/repocopy", "blockmap internal/backup internal/manifest internal/objstore internal/repository"},

	// The control plane.
	{"internal/source", "internal/attributes internal/jsonfile internal/qemu internal/serve internal/vfs nbd"},
	{"internal/cinderapi", "internal/identity"},
	{"agent", "blockmap internal/attributes internal/backup internal/catalog internal/chunk internal/cinderapi internal/identity internal/jsonfile internal/manifest internal/priority internal/quiesce internal/repository internal/restore internal/serve internal/source internal/tcpdoor internal/unixhttp internal/vfs nbd"},
	{"cmd/cairn", "agent blockmap internal/fusefs internal/identity internal/objstore internal/objstore/dirstore internal/objstore/limit internal/objstore/retry internal/objstore/s3store internal/priority internal/repocopy internal/repository internal/restore internal/serve internal/tcpdoor internal/vfs internal/volume nbd"},

	// The checks on the tree.
	{"internal/lint", ""},
	{"internal/e2e", ""},
}

func TestImports(t *testing.T) {
	may := make(map[string][]string)
	for _, l := range layers {
		for imp := range strings.FieldsSeq(l.imports) {
			if _, ok := may[imp]; !ok {
				t.Errorf("layers: %s imports %s, which is not listed above it", l.pkg, imp)
			}
		}
		may[l.pkg] = strings.Fields(l.imports)
	}

	// The files are read in this process, not by "go list", so that the test
	// cache knows about them.
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(name)
		allowed, ok := may[pkg]
		if !ok {
			t.Errorf("%s: package %s is not in layers: say where it sits", name, pkg)
		}
		for _, spec := range file.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if rel, ours := strings.CutPrefix(imp, module); ours && !slices.Contains(allowed, rel) {
				t.Errorf("%s: %s may not import %s", name, pkg, rel)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
