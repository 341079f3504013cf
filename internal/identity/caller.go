// Package identity says who calls.
package identity

import "time"

// Caller is who makes a request, and for which project.
type Caller struct {
	UserID, UserName       string
	ProjectID, ProjectName string
	Admin                  bool
	Roles                  []string
	ExpiresAt              time.Time
}
