package repository

import "github.com/cairnbackup/cairn/internal/chunk"

// choice gathers what a prune compacts, as long as there is room for it.
type choice struct {
	p     *pruner
	plans map[string]*compaction
	left  int // of maxMoved
}

// take plans to compact a pack, if there is room, and reports whether.
func (c *choice) take(x movable) bool {
	p, cost := c.p, 0
	for _, s := range x.sources {
		cost += len(p.chunks.packs[s].keys) + sourceCost
	}
	if cost > c.left {
		return false
	}
	c.left -= cost
	plan := c.plans[x.project]
	if plan == nil {
		plan = &compaction{project: x.project, packs: make(map[chunk.PackID]bool), sources: make(map[chunk.PackID]bool)}
		c.plans[x.project] = plan
		p.plans = append(p.plans, plan)
	}
	plan.packs[x.id] = true
	for _, s := range x.sources {
		plan.sources[s] = true
	}
	p.report.Compacted++
	if p.heals.packs[x.id] != nil {
		p.report.Healed++
	}
	p.report.Moved += x.live
	p.report.Freed += p.packs[x.id] - x.live*p.packs[x.id]/max(p.container(p.packs[x.id]), 1)
	return true
}

// mergeable says whether a pack is one that merging with others saves: a small one
// that earlier compactions made. Only forwardings name it, and the new one takes the
// place of each. A pack that manifests name would leave a forwarding behind, which is
// on as many stores as its shards are.
func (p *pruner) mergeable(id chunk.PackID, total int64) bool {
	return !p.chunks.off && p.chunks.packs[id] == nil && total < smallPack
}

// merge plans to compact small packs of one project: several, that together are small
// no more, so that what is merged is not merged again and again.
func (c *choice) merge(small []movable) {
	var live int64
	for _, x := range small {
		live += x.live
	}
	if len(small) < leastMerged || live < smallPack {
		return
	}
	for _, x := range small {
		if !c.take(x) {
			return
		}
	}
}
