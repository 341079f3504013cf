package nbd

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/pojntfx/go-nbd/pkg/backend"
)

var errStub = errors.New("nbd: being written")

type budget struct {
	mu          sync.Mutex
	limit, used int64
}
type conn struct {
	s    *Server
	nc   net.Conn
	peer Peer
}

func (c *conn) serve(context.Context) error { return errStub }
func peerOf(net.Conn) Peer                  { return Peer{} }
func disconnected(error) bool               { return false }

type Client struct{}
type BlockSizes struct{ Minimum, Preferred, Maximum int64 }
type ExportInfo struct{ Name, Description string }

func Dial(ctx context.Context, uri string, o ClientOptions) (*Client, error) { return nil, errStub }
func List(ctx context.Context, uri string) ([]ExportInfo, error)             { return nil, errStub }
func (c *Client) Size() int64                                                { return 0 }
func (c *Client) ReadOnly() bool                                             { return false }
func (c *Client) Contexts() []string                                         { return nil }
func (c *Client) BlockSizes() BlockSizes                                     { return BlockSizes{} }
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error      { return errStub }
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return errStub
}
func (c *Client) Flush(ctx context.Context) error                          { return errStub }
func (c *Client) Trim(ctx context.Context, off, n int64) error             { return errStub }
func (c *Client) Zero(ctx context.Context, off, n int64, punch bool) error { return errStub }
func (c *Client) Map(ctx context.Context, nbdContext string, off, n int64) ([]blockmap.Extent, error) {
	return nil, errStub
}
func (c *Client) Close() error             { return errStub }
func FromBackend(b backend.Backend) Device { return nil }
