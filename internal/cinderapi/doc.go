// Package cinderapi speaks OpenStack's Block Storage API, version 3, to the stock
// clients.
package cinderapi
