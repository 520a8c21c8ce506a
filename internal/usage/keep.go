// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"maps"
	"reflect"
	"slices"
	"time"
)

// restored is what the ledger knows of an attachment whose slot was not looked for yet.
type restored struct {
	container string
	guest     string // of an account for others
	name      string // of the interface
	folded    bool
	earlier   Traffic
	lost      Lost // as it was written
}

// settleAfter is how long after its end an attachment's counts are taken as final: a
// packet may have been on its way through the filters.
const settleAfter = time.Second

// Restore opens the accounts that an earlier process left in the ledger. It is called
// once, before anything is adopted.
func (a *Accounts) Restore(records []Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	there := a.inUse()
	for _, r := range records {
		c := a.open(r.ID)
		c.Container = r.Container
		c.Container.Traffic, c.Container.IP, c.Container.IPSince = Traffic{}, nil, time.Time{}
		c.Container.TCP, c.Container.TCPSince, c.Container.Established, c.Container.Sockets = nil, time.Time{}, nil, nil
		c.Container.Requests, c.Container.Layer7 = nil, Layer7{}
		if c.State == Stopped {
			c.stopped = a.Now().Add(-max(a.timeOfDay().Sub(c.StoppedAt), 0))
		}
		a.recall(c, &r, there)
	}
	a.recount()
}

// inUse returns the generations of the slots in use, also of those yet to be inherited.
func (s *Slots) inUse() map[uint64]bool {
	there := map[uint64]bool{}
	for _, slot := range s.Datapath.Slots() {
		there[slot.Generation] = true
	}
	for _, old := range s.Datapath.Old() {
		there[old.Generation] = true
	}
	return there
}

// recall adds what the ledger has of a container. there: the slots in use.
func (a *Accounts) recall(c *account, r *Record, there map[uint64]bool) {
	c.unrecalled = false
	c.remember(*r)
	for i := range r.Tallies {
		kept := &r.Tallies[i]
		a.recallTally(c, c.tallyOf(kept.kind(), kept.Name), kept, there)
	}
}

// remember notes what the ledger has of a container. It is a copy: a pointer into a list
// would keep all that is in the list for as long as this one container is.
func (c *account) remember(r Record) { c.written = &r }

func (a *Accounts) recallTally(c *account, t *tally, kept *Tally, there map[uint64]bool) {
	t.told = kept.Cgroup
	t.final = t.final.Plus(kept.Final)
	if t.attachedAt.IsZero() || kept.AttachedAt.Before(t.attachedAt) {
		t.attachedAt = kept.AttachedAt
	}
	if t.host == "" && t.at != AtContainer {
		t.host, t.hook, t.at = kept.HostInterface, kept.Hook, kept.At
	}
	for _, at := range kept.Attachments {
		if at.Boot == a.Boot && there[at.Generation] {
			a.expect(c, t, kept.Name, at)
		} else {
			t.lost(at, a.Boot)
		}
	}
}

// expect notes an attachment whose slot is still there, unless it is being counted.
func (a *Accounts) expect(c *account, t *tally, name string, at Attachment) {
	if at.Folded {
		t.remember(at) // the slot is only to be released
	}
	if slices.ContainsFunc(t.live, func(l *attachment) bool { return l.slot.Generation == at.Generation }) {
		return
	}
	a.restored[at.Generation] = restored{container: c.ID, guest: at.Guest, name: name, folded: at.Folded, earlier: at.Earlier, lost: at.Counted.Lost}
}

// lost takes over what was written of an attachment whose slot is gone: the host was
// started again, or the counters were discarded.
func (t *tally) lost(at Attachment, boot string) {
	if !at.Folded {
		t.final = t.final.Plus(at.Counted)
		before, _ := t.priorOn(boot, at.Target)
		at = at.after(before)
		at.Folded = true
	}
	if at.Boot == boot {
		t.remember(at)
	}
}

// Unrecalled returns the containers of which it is not known what they counted before.
func (a *Accounts) Unrecalled() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []string
	for id, c := range a.containers {
		if c.unrecalled {
			ids = append(ids, id)
		}
	}
	return ids
}

// Recalls tells that [Accounts.Unrecalled] has something to say.
func (a *Accounts) Recalls() <-chan struct{} { return a.recalls }

// Recall says what the ledger has of a container, nil if nothing.
func (a *Accounts) Recall(id string, kept *Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[id]
	if c == nil || !c.unrecalled {
		return
	}
	c.unrecalled = false
	if kept != nil {
		c.Container = c.Container.identifiedBy(kept.Container)
		a.recall(c, kept, a.inUse())
	}
}

// Pending returns the records that differ from what was last written; every one, if all
// is set. Those that the ledger was not asked about yet are left out: it may know more. So are
// those that have ended without being counted, and users' that were not counted yet, of which
// there can be any number.
func (a *Accounts) Pending(all bool) []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	var pending []Record
	for _, c := range a.containers {
		if c.unrecalled || c.leavesNothing() && (c.State == Stopped || c.User() != "") {
			continue
		}
		r := a.record(c)
		if all || c.written == nil || !reflect.DeepEqual(*c.written, r) {
			pending = append(pending, r)
		}
	}
	return pending
}

func (a *Accounts) record(c *account) Record {
	r := Record{Container: a.container(c)}
	r.Container.Interfaces = nil
	for _, name := range slices.Sorted(maps.Keys(c.tallies)) {
		r.Tallies = append(r.Tallies, a.recordTally(c.tallies[name], Tally{Name: name}))
	}
	if c.tellsCgroup() {
		r.Tallies = append(r.Tallies, a.recordTally(c.cgroup, Tally{Cgroup: true}))
	}
	if c.tcp != nil {
		r.Tallies = append(r.Tallies, a.recordTally(c.tcp, Tally{Cgroup: true, Sockets: true}))
	}
	if c.namespace != nil {
		r.Tallies = append(r.Tallies, a.recordTally(c.namespace, Tally{Sockets: true}))
	}
	r.Established = nil // it is of this moment
	shown := r.TCP
	r.sum()
	if shown != nil { // else they are not counted now, and the tallies say what is known
		r.TCP.InPart = shown.InPart
	}
	return r
}

// sum makes the totals those of the tallies. The counters go on while they are read: with totals
// of another moment, a process that comes after a kill would take for written what no hour of
// the history has.
func (r *Record) sum() {
	r.Traffic, r.TCP = Traffic{}, nil
	for _, t := range r.Tallies {
		r.add(t)
	}
}

func (s *Slots) recordTally(t *tally, of Tally) Tally {
	kept := Tally{Name: of.Name, Cgroup: of.Cgroup, Sockets: of.Sockets, HostInterface: t.host, Hook: t.hook, At: t.at, AttachedAt: t.attachedAt, Final: t.final}
	kept.Attachments = append(kept.Attachments, t.priors...)
	for _, at := range t.live {
		now := s.attachment(at)
		if now.Folded {
			kept.Final = kept.Final.Plus(now.Counted)
			before, _ := t.priorOn(s.Boot, now.Target)
			now = now.after(before) // as [tally.fold] will have it
		}
		kept.Attachments = append(kept.Attachments, now)
	}
	return kept
}

func (s *Slots) attachment(at *attachment) Attachment {
	guest := ""
	if at.slot.Others {
		guest = at.slot.Container
	}
	return Attachment{
		Guest:      guest,
		Boot:       s.Boot,
		Generation: at.slot.Generation,
		Target:     at.slot.Target,
		Counted:    at.read(s.Datapath),
		Passed:     at.passed,
		Told:       at.told(s.Datapath),
		Earlier:    at.earlier,
		Torn:       at.torn,
		Folded:     !at.closedAt.IsZero() && s.Now().Sub(at.closedAt) >= settleAfter,
	}
}

// Written says that records are on disk. The slots whose counts are final are released.
func (a *Accounts) Written(records []Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	folded := map[uint64]bool{}
	for _, r := range records {
		if c := a.containers[r.ID]; c != nil {
			c.remember(r)
		}
		for _, t := range r.Tallies {
			for _, at := range t.Attachments {
				folded[at.Generation] = at.Folded
			}
		}
	}
	for _, at := range slices.Clone(a.closed) {
		if folded[at.slot.Generation] {
			_ = a.fold(at) // a slot that stays is given up at the next start: the ledger says it may be
		}
	}
}
