// Package cinderapi speaks OpenStack's Block Storage API, version 3, to the stock
// clients. API.md says what of it.
//
// A request goes one way: who calls (Options.Authenticate), which microversion,
// which route; then the route reads the body and checks it with a schema, gets the
// things it is about and refuses those that the caller must not see, asks the
// [Service] for the change, and makes the body of the answer for the microversion
// and the caller. The result goes to the audit log and then to the client.
package cinderapi
