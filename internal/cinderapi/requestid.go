package cinderapi

import "context"

type requestKey struct{}

// WithRequestID returns a context of work that a request led to.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID is the ID of the request that led to some work, "" if none did. The contexts
// that a [Service] is called with have one.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}
