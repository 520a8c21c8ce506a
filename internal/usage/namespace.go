// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"

	"github.com/nettally/nettally/bpf"
)

// NamespaceTCP is what the kernel counts of TCP for a network namespace.
type NamespaceTCP = bpf.NamespaceTCP

// ofNetNS is what is counted of a network namespace's connections.
func ofNetNS(inode uint64) Target { return Target{NetNS: inode, Sockets: true} }

// CountNamespace adds the kernel's TCP counters of a network namespace to a container, which must
// have the namespace to itself. It stands in for a program on the container's cgroup, and tells
// less: see [TCP.InPart].
//
// The growth since the last call is counted, also since that of an earlier process that kept a
// record. Where there is none, all is counted if the namespace is fresh: it was made for the
// container, after this process began. Else what has passed is left out, since nobody knows whose
// that is.
//
// The calls for a namespace must not run at the same time.
func (a *Accounts) CountNamespace(inode uint64, id, hook string, now NamespaceTCP, fresh bool) error {
	target := ofNetNS(inode)
	if owner := a.Owner(target); owner != "" && owner != id {
		if err := a.EndNamespace(inode, true); err != nil {
			return err
		}
	}
	if err := a.MayTake(target, id); err != nil {
		return err
	}
	if _, _, err := a.Open(target, "", hook); err != nil {
		return err
	}
	return errors.Join(a.Assign(target, id, ""), a.noteNamespace(target, now, fresh))
}

func (a *Accounts) noteNamespace(target Target, now NamespaceTCP, fresh bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil || at.tally == nil {
		return nil
	}
	note := at.tcpCounters(a.Datapath).TCPNote
	switch {
	case !note.ListenDropsKnown:
		note.Passed = a.passedBefore(at, now, fresh)
	default:
		note.Passed = note.Passed.Minus(note.Told.Restarted(now))
	}
	note.Told, note.ListenDropsKnown = now, true
	return a.Datapath.NoteTCP(at.slot, note)
}

// passedBefore returns what of a namespace's numbers is not counted on its slot, which is new.
func (a *Accounts) passedBefore(at *attachment, now NamespaceTCP, fresh bool) NamespaceTCP {
	if fresh {
		return NamespaceTCP{}
	}
	if last, ok := a.last(at.tally, at.slot.Target); ok && last.Told != nil && !last.Told.Lost && last.Told.Restarted(now) == (NamespaceTCP{}) {
		return last.Told.NamespaceTCP
	}
	return now
}

// EndNamespace ends what [Accounts.CountNamespace] began. Its owner keeps what was counted. lost
// says that what is counted there next is not the container's alone.
func (a *Accounts) EndNamespace(inode uint64, lost bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	target := ofNetNS(inode)
	at := a.attachments[target]
	if at == nil {
		return nil
	}
	delete(a.attachments, target)
	var err error
	if lost {
		note := at.tcpCounters(a.Datapath).TCPNote
		note.ListenDropsKnown = false
		err = a.Datapath.NoteTCP(at.slot, note)
	}
	return errors.Join(err, a.close(at))
}

// CountsNamespace reports whether the connections of a namespace are being counted.
func (a *Accounts) CountsNamespace(inode uint64) bool { return a.Owner(ofNetNS(inode)) != "" }

// told returns what the kernel said last of a namespace that is counted on a slot, nil for another
// target.
func (at *attachment) told(d Datapath) *Told {
	if kindOf(at.slot.Target) != ofNamespace {
		return nil
	}
	note := at.tcpCounters(d).TCPNote
	return &Told{note.Told, at.slot.Generation, !note.ListenDropsKnown}
}
