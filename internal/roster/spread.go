// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// confirmAfter is how long apart two looks are that say that the processes of a container
// are in several namespaces: whoever only passes through the host's has left it by then.
const confirmAfter = hostNetworkAfter

// note notes over which namespaces the processes of a member are spread at a look. Where that
// is known of it, it is at once; else it takes two looks in a row.
func (m *member) note(now watcher.Spread) {
	switch known := m.Reason == usage.HostNetwork || m.Reason == usage.SeveralNetworks; {
	case now == watcher.Together:
		m.astray, m.spread = time.Time{}, watcher.Together
		if m.Extent == MaybeInMore {
			m.Extent = InOne
		}
	case known || !m.astray.IsZero() && time.Since(m.astray) >= confirmAfter:
		m.spread, m.Extent = now, InMore
	case m.astray.IsZero():
		m.astray = time.Now()
		m.Extent = max(m.Extent, MaybeInMore)
	}
}

// doubtful reports whether the last look at a member is to be confirmed.
func (m *member) doubtful() bool { return !m.astray.IsZero() && m.spread == watcher.Together }

// inHost deals with a member of which all processes are in the host's namespace. Who was in
// another one may be starting anew in the same cgroup.
func (r *Roster[F]) inHost(m *member) {
	if m.space != nil {
		m.note(watcher.AlsoInHost)
		if m.doubtful() {
			m.look.stop()
			return
		}
	}
	m.astray, m.spread, m.Extent = time.Time{}, watcher.Together, InMore
	r.leave(m)
	r.settle(m, usage.HostNetwork)
}

// why says what becomes of a member, by all its processes, if one of them alone would have
// it counted, or not, for a reason.
//
// Who was in the host's network may have left a socket there when its last process leaves.
// So it is counted as one in there until it has an interface that leads to the host, which
// only who administers that can give it: as a runtime does that is slow to start it. One that
// has such an interface and was never seen in the host alone has its supervisor there.
func (m *member) why(reason usage.Reason) usage.Reason {
	given, wasInHost := m.space.given, m.Reason == usage.HostNetwork
	switch {
	case m.spread.WithHost() && (wasInHost || !given), wasInHost && !given:
		return usage.HostNetwork
	case m.spread != watcher.Together && (reason == usage.Accounted || reason == usage.PartlyCounted):
		return usage.SeveralNetworks
	}
	return reason
}
