// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/wallclock"
)

// Target is what is counted on a slot: an interface, or a cgroup.
type Target = bpf.Target

// OnHost is an interface in the host's namespace.
func OnHost(ifindex int) Target { return Target{Ifindex: ifindex} }

// attachment is an interface or a cgroup that is being counted, or was until it went.
type attachment struct {
	slot     bpf.Slot
	host     string
	hook     string
	at       time.Time
	owner    string    // id of a container, "" while nobody owns it
	tally    *tally    // the owner's
	closedAt time.Time // zero while it is counted
	shadowed bool
	passed   Opens
	earlier  Traffic // where its target was another container's: what was counted of that before
}

// place says where an interface is counted.
func (at *attachment) place() Place {
	if at.slot.NetNS != 0 {
		return AtContainer
	}
	return AtHost
}

// orphan is what an interface counted that went before its owner was known.
type orphan struct {
	Interface
	at time.Time // it went
}

// maxClosed is how many slots may wait for a ledger that does not come round to it.
const maxClosed = 1024

// Open begins to count a host interface that has no owner yet. It returns the slot
// for the filters on it, whose counters are at 0. An interface that an earlier process
// counted keeps its slot; `on` is the hook it is on.
func (a *Accounts) Open(target Target, host, hook string) (slot uint16, on string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.attachments[target]; at != nil {
		return at.slot.Index, at.hook, nil
	}
	taken, err := a.Datapath.Take(target)
	for errors.Is(err, bpf.ErrFull) && len(a.closed) > 0 {
		a.fold(a.closed[0])
		taken, err = a.Datapath.Take(target)
	}
	if err != nil {
		return 0, "", err
	}
	a.attachments[target] = &attachment{slot: taken, host: host, hook: hook, at: a.timeOfDay()}
	return taken.Index, "", nil
}

// Succeed begins to count a target on another slot, for another owner: what its owner has
// ended with stays that one's. swap, which must not call the accounts, has the programs
// count on the slot, and is not needed for tcx. A slot other than 0 is the one that counts
// now, also with an error.
func (a *Accounts) Succeed(target Target, swap func(slot uint16) error) (slot uint16, err error) {
	old, slot, err := a.takeOver(target, swap)
	if err != nil || old == nil {
		return slot, err
	}
	err = a.Datapath.Quiesce() // no packet is on its way to the old slot any more
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.attachments[target]; at != nil && at.slot.Index == slot {
		at.earlier, at.passed = a.before(old).Plus(a.mustRead(old)), old.passed
	}
	return slot, errors.Join(err, a.close(old))
}

func (a *Accounts) takeOver(target Target, swap func(slot uint16) error) (old *attachment, slot uint16, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old = a.attachments[target]
	if old == nil {
		return nil, 0, nil
	}
	taken, err := a.Datapath.Take(target)
	if err != nil {
		return nil, 0, err
	}
	taken.OwnQdisc = old.slot.OwnQdisc
	err = a.Datapath.Keep(taken)
	switch {
	case err != nil:
	case old.hook == "tcx":
		err = a.Datapath.Bind(taken)
	default:
		err = swap(taken.Index)
	}
	if err != nil {
		return nil, 0, errors.Join(err, a.Datapath.Release(taken))
	}
	a.attachments[target] = &attachment{slot: taken, host: old.host, hook: old.hook, at: a.timeOfDay()}
	return old, taken.Index, nil
}

// Handover says that a host interface changes between clsact and tcx: while both see a
// packet, only tcx counts it. It is to be said before the second is put on, and taken
// back when the first is off and [Accounts.Quiesce] has returned.
func (a *Accounts) Handover(target Target, up bool) error {
	return a.note(target, func(n *bpf.Note) { n.Handover = up })
}

// InHandover says whether a host interface is changing between clsact and tcx.
func (a *Accounts) InHandover(target Target) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	return at != nil && at.slot.Handover
}

// Bind lets tcx programs on a host interface count on its slot.
func (a *Accounts) Bind(target Target) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.attachments[target]; at != nil {
		return a.Datapath.Bind(at.slot)
	}
	return nil
}

// BindInherited is Bind for an interface that is not adopted yet.
func (a *Accounts) BindInherited(l Leftover) error { return a.Datapath.Bind(l.slot) }

// Quiesce waits until every packet that is on its way has been counted.
func (a *Accounts) Quiesce() error { return a.Datapath.Quiesce() }

// Inherit takes slots for what an older layout of the counters had in use. Filters that
// count on the old ones are to be replaced, and then [Accounts.Settle] called.
func (a *Accounts) Inherit() ([]Leftover, error) {
	var left []bpf.Slot
	for _, old := range a.Datapath.Old() {
		slot, err := a.Datapath.Inherit(old)
		if err != nil {
			return leftovers(left), fmt.Errorf("inherit counts of %s: %w", old.Target, err)
		}
		left = append(left, slot)
	}
	return leftovers(left), nil
}

// Settle moves the counts of an older layout to the slots that inherited them.
func (a *Accounts) Settle() error { return a.Datapath.Settle() }

// Leftover is a slot that an earlier process left in use.
type Leftover struct {
	Target
	Slot uint16
	// Older says that another slot was taken for the same target later: programs that are
	// on count on that.
	Older bool

	slot bpf.Slot
}

// leftovers marks the slots whose target has another one since.
func leftovers(slots []bpf.Slot) []Leftover {
	newest := map[Target]uint64{}
	for _, s := range slots {
		newest[s.Target] = max(newest[s.Target], s.Generation)
	}
	var left []Leftover
	for _, s := range slots {
		left = append(left, Leftover{Target: s.Target, Slot: s.Index, Older: s.Generation < newest[s.Target], slot: s})
	}
	return left
}

// Leftovers returns the slots in use that nothing was opened on, or adopted: interfaces
// first, since what a cgroup counted is of use only without one.
func (a *Accounts) Leftovers() []Leftover {
	a.mu.Lock()
	defer a.mu.Unlock()
	ours := map[uint64]bool{}
	for _, at := range a.attachments {
		ours[at.slot.Generation] = true
	}
	for _, at := range slices.Concat(a.closed, a.discarded) {
		ours[at.slot.Generation] = true
	}
	var slots []bpf.Slot
	for _, s := range a.Datapath.Slots() {
		if !ours[s.Generation] {
			slots = append(slots, s)
		}
	}
	left := leftovers(slots)
	slices.SortFunc(left, func(a, b Leftover) int { return cmp.Compare(a.Cgroup, b.Cgroup) })
	return left
}

// Adopt goes on counting a host interface on the slot an earlier process took, for the
// owner it had then.
func (a *Accounts) Adopt(l Leftover, host, hook string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot := l.slot
	at := &attachment{slot: slot, host: host, hook: hook, at: a.timeOfDay().Add(-age(slot))}
	a.attachments[l.Target] = at
	a.ownAgain(at)
}

// Retire ends the counting on a slot that an earlier process took, whose filters are
// gone: the owner it had keeps what it counted. It returns whether that process made the
// interface's qdisc.
func (a *Accounts) Retire(l Leftover) (ownQdisc bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	slot := l.slot
	if a.restored[slot.Generation].folded {
		return slot.OwnQdisc, a.Datapath.Release(slot)
	}
	at := &attachment{slot: slot, at: a.timeOfDay().Add(-age(slot))}
	a.ownAgain(at)
	if slot.Cgroup != 0 && !a.needsCgroup(at) {
		return false, a.discard(at)
	}
	return slot.OwnQdisc, a.close(at)
}

// needsCgroup says whether the counts of a cgroup that is gone are told: they were, or the
// container ended before it was known whether it has an interface, and none is known.
func (a *Accounts) needsCgroup(at *attachment) bool {
	c := a.containers[at.owner]
	if c == nil || at.tally == nil || !at.slot.Told && len(c.tallies) > 0 {
		return false
	}
	at.tally.told = true
	return true
}

// ownAgain gives an attachment of an earlier process to the owner it had: the one noted
// with its slot, or else the one in the ledger.
func (a *Accounts) ownAgain(at *attachment) {
	note, then := at.slot.Note, a.restored[at.slot.Generation]
	delete(a.restored, at.slot.Generation)
	id, name := note.Container, note.Interface
	at.earlier = then.earlier
	if id == "" {
		id, name = then.container, then.name
	}
	if id == "" {
		return
	}
	c := a.account(id)
	if c.ID == "" { // it started after the ledger was last written
		c.Container = Container{ID: id, State: Running, StartedAt: at.at}
	}
	c.Reason = Accounted // the ledger may have been written before it was
	at.owner = id
	c.tallyOf(at.slot.Cgroup != 0, name).own(at)
}

func (t *tally) own(at *attachment) {
	t.told = t.told || at.slot.Told
	if t.attachedAt.IsZero() {
		t.attachedAt = at.at
	}
	if at.host != "" || at.place() == AtContainer {
		t.host, t.hook, t.at = at.host, at.hook, at.place()
	}
	t.live = append(t.live, at)
	at.tally = t
}

// OwnQdisc notes that we made the qdisc of a host interface.
func (a *Accounts) OwnQdisc(target Target) error {
	return a.note(target, func(n *bpf.Note) { n.OwnQdisc = true })
}

// DisownQdisc notes that our qdisc of a host interface is gone.
func (a *Accounts) DisownQdisc(target Target) error {
	return a.note(target, func(n *bpf.Note) { n.OwnQdisc = false })
}

// note changes what is noted with the slot of a host interface, if it is counted.
func (a *Accounts) note(target Target, change func(*bpf.Note)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return nil
	}
	changed := at.slot
	change(&changed.Note)
	if err := a.Datapath.Keep(changed); err != nil {
		return err
	}
	at.slot = changed
	return nil
}

// QdiscOwned says whether we made the qdisc of a host interface.
func (a *Accounts) QdiscOwned(target Target) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.attachments[target]
	return known != nil && known.slot.OwnQdisc
}

// Owner returns the id of the container that owns a host interface, "" if nobody does.
func (a *Accounts) Owner(target Target) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if known := a.attachments[target]; known != nil {
		return known.owner
	}
	return ""
}

// Assign gives a host interface, and all it has counted, to a container that calls
// it name. An interface keeps its first owner.
func (a *Accounts) Assign(target Target, id, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, c := a.attachments[target], a.containers[id]
	if at == nil || c == nil || at.tally != nil {
		return nil
	}
	at.slot.Container, at.slot.Interface = id, name
	at.owner = id
	c.tallyOf(target.Cgroup != 0, name).own(at)
	before := a.before(at)
	at.slot.SeededReceive = less(at.slot.SeededReceive, before.Receive.Interface)
	at.slot.SeededTransmit = less(at.slot.SeededTransmit, before.Transmit.Interface)
	// What can't be noted is known as long as this process lives, and then by the ledger.
	return a.Datapath.Keep(at.slot)
}

// less returns what is left of a volume, never less than nothing.
func less(v bpf.Volume, by Volume) bpf.Volume {
	return bpf.Volume{
		Bytes:   v.Bytes - min(v.Bytes, by.Bytes),
		Packets: v.Packets - min(v.Packets, by.Packets),
	}
}

// Seed adds to what the kernel counted on a host interface while nobody else did:
// before we came, or while our filters were off. It is noted with the slot.
func (a *Accounts) Seed(target Target, receive, transmit Volume) error {
	return a.note(target, func(n *bpf.Note) {
		n.SeededReceive.Bytes = Add(n.SeededReceive.Bytes, receive.Bytes)
		n.SeededReceive.Packets = Add(n.SeededReceive.Packets, receive.Packets)
		n.SeededTransmit.Bytes = Add(n.SeededTransmit.Bytes, transmit.Bytes)
		n.SeededTransmit.Packets = Add(n.SeededTransmit.Packets, transmit.Packets)
	})
}

// Counted returns what our filters have counted on a host interface, without what was
// seeded. Not ok: it is not counted.
func (a *Accounts) Counted(target Target) (_ Traffic, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return Traffic{}, false
	}
	rx, tx, err := a.Datapath.Read(at.slot)
	return traffic(target, rx, tx), err == nil
}

// Beside returns what is said of a host interface besides [Accounts.Counted], as its own
// counters would have it: what was seeded, and counted on earlier slots.
func (a *Accounts) Beside(target Target) (receive, transmit Volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return Volume{}, Volume{}
	}
	before := a.before(at)
	return Volume(at.slot.SeededReceive).plus(before.Receive.Interface), Volume(at.slot.SeededTransmit).plus(before.Transmit.Interface)
}

// Rename notes another name of a host interface.
func (a *Accounts) Rename(target Target, host string) {
	a.change(target, func(at *attachment) { at.host = host })
}

// Hook notes another way in which a host interface is counted.
func (a *Accounts) Hook(target Target, hook string) {
	a.change(target, func(at *attachment) { at.hook = hook })
}

// BindCgroup lets the programs on a cgroup count on its slot.
func (a *Accounts) BindCgroup(target Target) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.attachments[target]; at != nil {
		return a.Datapath.BindCgroup(at.slot)
	}
	return nil
}

// Tell has the numbers of a container's cgroup shown, from now on and for good: no
// interface tells as much. While a container starts that is still open.
func (a *Accounts) Tell(target Target) error {
	a.mu.Lock()
	at := a.attachments[target]
	told := at == nil || at.slot.Told
	if !told && at.tally != nil {
		at.tally.told = true
	}
	a.mu.Unlock()
	if told {
		return nil
	}
	return a.note(target, func(n *bpf.Note) { n.Told = true })
}

// Bound says whether the programs on a cgroup count on a slot that an earlier process took
// for it.
func (a *Accounts) Bound(l Leftover) bool { return a.Datapath.CgroupBound(l.slot) }

// EndCgroup ends the counting of a cgroup. The programs must be off. Numbers that were told
// stay; others are of no use.
func (a *Accounts) EndCgroup(target Target) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return nil
	}
	delete(a.attachments, target)
	if at.slot.Told {
		return a.close(at)
	}
	return a.discard(at)
}

func (a *Accounts) discard(at *attachment) error {
	if t := at.tally; t != nil {
		t.live = slices.DeleteFunc(t.live, func(other *attachment) bool { return other == at })
		if c := a.containers[at.owner]; c != nil && len(t.live) == 0 && !t.told {
			c.cgroup = nil
		}
	}
	at.closedAt = a.Now()
	a.discarded = append(a.discarded, at)
	return a.releaseDiscarded()
}

// releaseDiscarded gives up the slots that no packet is on its way to any more.
func (a *Accounts) releaseDiscarded() (err error) {
	for len(a.discarded) > 0 && a.Now().Sub(a.discarded[0].closedAt) >= settleAfter {
		err = errors.Join(err, a.Datapath.Release(a.discarded[0].slot))
		a.discarded = a.discarded[1:]
	}
	return err
}

// Shadow says that packets pass a host interface which our filters don't see, or that
// they do again.
func (a *Accounts) Shadow(target Target, shadowed bool) {
	a.change(target, func(at *attachment) { at.shadowed = shadowed })
}

func (a *Accounts) change(target Target, change func(*attachment)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return
	}
	change(at)
	if at.tally != nil {
		at.tally.host, at.tally.hook, at.tally.at = at.host, at.hook, at.place()
	}
}

// Close ends the counting of a host interface that is gone, or whose filters are:
// its owner keeps what it counted.
func (a *Accounts) Close(target Target) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.attachments[target]
	if at == nil {
		return nil
	}
	delete(a.attachments, target)
	return a.close(at)
}

// close holds on to the slot until its counts are written. Without an owner or a ledger
// there is nothing to wait for.
func (a *Accounts) close(at *attachment) error {
	at.closedAt = a.Now()
	if at.tally == nil {
		last := a.show(at)
		if last.Receive.Interface.Packets+last.Transmit.Interface.Packets > 0 {
			a.orphans = append(a.orphans, orphan{Interface: last, at: at.closedAt})
		}
		return a.Datapath.Release(at.slot)
	}
	a.closed = append(a.closed, at)
	if !a.Kept || len(a.closed) > maxClosed {
		return a.fold(a.closed[0])
	}
	return nil
}

// fold puts what a closed attachment counted into its tally, and releases the slot.
func (a *Accounts) fold(at *attachment) error {
	last, t := a.attachment(at), at.tally
	last.Folded = true
	t.final = t.final.Plus(last.Counted)
	t.live = slices.DeleteFunc(t.live, func(other *attachment) bool { return other == at })
	before, _ := t.priorOn(a.Boot, last.Target)
	t.remember(last.after(before))
	a.closed = slices.DeleteFunc(a.closed, func(other *attachment) bool { return other == at })
	if err := a.Datapath.Release(at.slot); err != nil {
		return fmt.Errorf("give up slot of %s: %w", at.host, err)
	}
	return nil
}

// mustRead reads an attachment. Its slot is ours until fold, under the same lock, so it
// can't have been released.
func (a *Accounts) mustRead(at *attachment) Traffic {
	rx, tx, err := a.Datapath.Read(at.slot)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an attachment was released: " + at.host)
	}
	t := traffic(at.slot.Target, rx, tx)
	t.Receive.seed(at.slot.SeededReceive)
	t.Transmit.seed(at.slot.SeededTransmit)
	return t
}

func (c *Counts) seed(v bpf.Volume) {
	c.Seeded = Volume(v)
	c.Interface = c.Interface.plus(c.Seeded)
}

// traffic puts what a slot counted into our words.
func traffic(target Target, rx, tx bpf.Counters) Traffic {
	t := Traffic{Receive: counts(rx), Transmit: counts(tx)}
	if target.Cgroup != 0 {
		t.Receive, t.Transmit = setLoopbackApart(t.Receive), setLoopbackApart(t.Transmit)
	}
	return t
}

// setLoopbackApart takes what passed loopback from the cell of what is no IP, where the
// programs for cgroups put it.
func setLoopbackApart(c Counts) Counts {
	other := &c.Cells[FamilyOther][ProtocolOther]
	c.Loopback, *other = *other, Volume{}
	return c
}

// counts puts a row of counters into our words.
func counts(row bpf.Counters) Counts {
	c := Counts{
		Interface: Volume{Bytes: row.Interface.Bytes, Packets: row.Interface.Packets},
		SYN:       row.TCPSYN,
		SYNACK:    row.TCPSYNACK,
		RST:       row.TCPRST,
		FIN:       row.TCPFIN,
	}
	for i, cell := range row.Cells {
		family, protocol := Family(i/int(Protocols)), Protocol(i%int(Protocols))
		if family == FamilyOther {
			protocol = ProtocolOther
		}
		c.Cells[family][protocol] = Volume{Bytes: cell.Bytes, Packets: cell.Packets}
	}
	return c
}

// age is how long ago a slot was taken.
func age(s bpf.Slot) time.Duration {
	return wallclock.SinceBoot() - time.Duration(s.Generation)
}
