// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// While a clsact qdisc is added to an interface that is up, the kernel stops its transmit
// queue and drops what is sent (qdisc_graft, net/sched/sch_api.c): for some milliseconds
// a container gets nothing. One that is born has nothing to lose. One that was at work
// before us has, so it is counted on tcx, which stops nothing.

const (
	// busyFor is how long is looked at who is at work.
	busyFor = 100 * time.Millisecond
	// busyFrom is how many packets a container must receive a second for one or two of
	// them to be in those milliseconds.
	busyFrom = 500
)

// findBusy returns the host veths, of those that nobody counts yet, whose containers are at
// work.
func (s *veths) findBusy(ctx context.Context) map[int]bool {
	if !s.tcxAllowed() || !s.anyUncounted() {
		return nil
	}
	before, since := s.packets(), time.Now()
	select {
	case <-ctx.Done():
	case <-time.After(busyFor):
	}
	least := uint64(busyFrom * time.Since(since).Seconds())
	busy := map[int]bool{}
	for index, now := range s.packets() {
		if then, ok := before[index]; ok && now.ReceivePackets-then.ReceivePackets >= least {
			busy[index] = true
		}
	}
	return busy
}

// anyUncounted says whether there is a host veth that no earlier process has left us.
func (s *veths) anyUncounted() bool {
	found, err := s.Host.HostVeths()
	if err != nil {
		return false // the reconcile reports it
	}
	for _, v := range found {
		if _, ok := s.counted(usage.OnHost(v.Index)); !ok {
			return true
		}
	}
	return false
}

// packets returns the kernel's counters of all interfaces in the host, nil if they can't be
// read.
func (s *veths) packets() map[int]watcher.LinkReading {
	all, err := (witness{s.Host}).counters(context.Background(), nil)
	if err != nil {
		s.Log.Debug("could not read the kernel's counters", "err", err)
	}
	return all.host
}
