package cinderapi

import (
	"context"
	"maps"
)

func (m *memory) Hosts(context.Context) ([]Host, error) { return m.hosts, m.fail }
func (m *memory) Types() []Type                         { return m.types }
func (m *memory) Zone() string                          { return "nova" }

func (m *memory) DefaultQuota() Quota {
	q := Quota{}
	for _, k := range quotaKeys {
		q[k] = Usage{Limit: -1}
	}
	q["backups"], q["backup_gigabytes"] = Usage{Limit: 10}, Usage{Limit: 1000}
	return q
}

func (m *memory) Quota(_ context.Context, project string) (Quota, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.DefaultQuota()
	for k, n := range m.quotas[project] {
		q[k] = Usage{Limit: n}
	}
	for _, b := range m.backups {
		if b.Project == project {
			n, gb := q["backups"], q["backup_gigabytes"]
			n.InUse, gb.InUse = n.InUse+1, gb.InUse+b.Size
			q["backups"], q["backup_gigabytes"] = n, gb
		}
	}
	return q, m.fail
}

func (m *memory) SetQuota(_ context.Context, project string, limits map[string]int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.quotas[project] == nil {
		m.quotas[project] = map[string]int64{}
	}
	maps.Copy(m.quotas[project], limits)
	return m.fail
}

func (m *memory) DeleteQuota(_ context.Context, project string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.quotas, project)
	return m.fail
}
