// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// countTCP counts what becomes of the connections in a namespace, while one container has that to
// itself. The connections of a container with others inside are in the namespaces of those, too, so
// the numbers of neither are told.
func (b *Backend) countTCP(s *space) {
	m, ok := b.members[s.owner.Key]
	if !b.TCP || !ok {
		return
	}
	alone, decided := m.Alone()
	nests := m.Found.ParentID != "" || b.inside[m.ID] > 0
	if !decided && !nests {
		return
	}
	if !alone || nests {
		b.endTCP(s, true)
		return
	}
	now, err := watcher.ReadTCP(b.Proc, s.pid)
	if number, gone := b.files.namespace(s.pid); gone != nil || number != s.number {
		return // the next reading finds another process, or that there is none
	}
	if err == nil {
		fresh := s.fresh && !b.Accounts.CountsNamespace(s.netns) && !b.older(s.pid, m.Found)
		err = b.Accounts.CountNamespace(s.netns, m.ID, Hook, usage.NamespaceTCP(now), fresh)
	}
	s.tcpFailed(b, err)
}

// older reports whether the namespace of a process is known to be older than a container: it was
// there, with what others have opened in it, when the container came.
func (b *Backend) older(pid int, c watcher.Container) bool {
	_, since, err := watcher.NamespaceSince(b.Proc, pid)
	return err == nil && c.JoinedLate(since)
}

func (s *space) tcpFailed(b *Backend, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != s.tcpFailure {
		b.Log.Warn("TCP connections of a container are not counted; trying again", "container_id", s.owner.ID, "err", err)
	}
	s.tcpFailure = said
}

// endTCP ends the counting of a namespace's connections. lost says that they are not those of one
// container any more.
func (b *Backend) endTCP(s *space, lost bool) {
	if err := b.Accounts.EndNamespace(s.netns, lost); err != nil {
		b.Log.Warn("could not end the counting of TCP connections", "container_id", s.owner.ID, "err", err)
	}
}
