package cinderapi

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// fill makes n backups of alice's, with names b-0 and so on.
func (m *memory) fill(n int) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		b := Backup{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)).String(), Project: projectA, Name: fmt.Sprint("b-", i), Status: "available",
			VolumeID: typeID, Size: int64(i % 3), Created: at.Add(time.Duration(i/2) * time.Minute), Metadata: map[string]string{"k": "v"},
		}
		m.backups[b.ID] = b
	}
}
