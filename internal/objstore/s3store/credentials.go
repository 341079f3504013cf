package s3store

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	// credentialsTime bounds a question to a metadata service. Where there is
	// none, often nobody answers at all, so that connecting gets less.
	credentialsTime = 10 * time.Second
	credentialsDial = 2 * time.Second
	// credentialsAgain is how long it stands that there are none.
	credentialsAgain = 10 * time.Second
)

// errCredentials: there are none, or they cannot be read.
var errCredentials = errors.New("no credentials")

// chain looks for credentials where every S3 tool does. minio-go's own chain
// goes on without any when it finds none, and the server's refusal then says
// nothing of the cause.
type chain struct {
	profile string
	client  *http.Client

	mu    sync.Mutex
	found credentials.Provider // nil: look again
	none  error                // why there are none
	since time.Time            // of none
}

var _ credentials.Provider = (*chain)(nil)

func newChain(profile string) *credentials.Credentials {
	tr := transport(nil)
	tr.DisableKeepAlives = true
	tr.DialContext = (&net.Dialer{Timeout: credentialsDial}).DialContext
	return credentials.New(&chain{profile: profile, client: &http.Client{Transport: bounded{tr}, Timeout: credentialsTime}})
}

// Retrieve implements credentials.Provider.
func (c *chain) Retrieve() (credentials.Value, error) { return c.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider.
func (c *chain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	own := credentials.CredContext{Client: c.client}
	if cc != nil {
		own.Context = cc.Context
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.none != nil && time.Since(c.since) < credentialsAgain {
		return credentials.Value{}, c.none
	}
	v, err := c.lookLocked(&own)
	if err != nil && (own.Context == nil || own.Context.Err() == nil) {
		c.none, c.since = err, time.Now()
	} else {
		c.none = nil
	}
	return v, err
}

// lookLocked asks one provider after the other.
func (c *chain) lookLocked(cc *credentials.CredContext) (credentials.Value, error) {
	c.found = nil
	file := &credentials.FileAWSCredentials{Profile: c.profile}
	if c.profile != "" {
		v, err := file.RetrieveWithCredContext(cc)
		if err == nil && !usable(v) {
			err = errors.New("it holds no key")
		}
		if err != nil {
			return v, fmt.Errorf("%w: profile %s of the shared credentials file cannot be used: %w", errCredentials, c.profile, err)
		}
		c.found = file
		return v, nil
	}
	env := &credentials.EnvAWS{}
	if v, err := env.RetrieveWithCredContext(cc); err == nil && usable(v) {
		c.found = env
		return v, nil
	}
	if v, err := file.RetrieveWithCredContext(cc); err == nil && usable(v) {
		c.found = file
		return v, nil
	} else if os.Getenv("AWS_PROFILE") != "" {
		return credentials.Value{}, fmt.Errorf("%w: AWS_PROFILE names profile %s, which cannot be used: %w", errCredentials, os.Getenv("AWS_PROFILE"), errors.Join(err))
	}
	iam := &credentials.IAM{}
	v, err := iam.RetrieveWithCredContext(cc)
	if err == nil && usable(v) {
		c.found = iam
		return v, nil
	}
	return credentials.Value{}, fmt.Errorf("%w: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of the shared credentials file with profile=P (this machine has no role either)", errCredentials)
}

// IsExpired implements credentials.Provider.
func (c *chain) IsExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found == nil || c.found.IsExpired()
}

func usable(v credentials.Value) bool { return v.AccessKeyID != "" && v.SecretAccessKey != "" }
