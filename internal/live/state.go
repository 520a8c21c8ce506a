// SPDX-License-Identifier: Apache-2.0

package live

import (
	"cmp"
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// state is what was read, and by which reading each part of it changed. Readings are numbered
// from 1.
type state struct {
	Reading
	seq        uint64
	watched    bool // the last reading was for viewers
	containers map[string]*tracked
	gone       []gone
	lost       uint64 // gone has nothing of readings up to this one
	alerts     map[string]alert
	quotas     QuotaState
	quotasAt   time.Duration // since boot
	quotasSeq  uint64
	// Messages that are the same for all who are told everything, made once per reading.
	all    []*Message
	allSeq uint64
}

// tracked is a container, and the readings that found something new about it.
type tracked struct {
	Container
	seen, identity, total, started, stopped uint64
	mode, shares                            string // what its network is called, and the owner of that
}

// gone is a container that is forgotten, and the reading that found that.
type gone struct {
	id  string
	seq uint64
}

type alert struct {
	quota.Alert
	seq    uint64 // the reading that found its state
	listed bool   // at the last reading of alerts
}

func newState() state {
	return state{containers: map[string]*tracked{}, alerts: map[string]alert{}}
}

// read reads once. It reports whether it could: a reading that ctx has ended is dropped.
func (h *Hub) read(ctx context.Context, watched bool) bool {
	all := h.seq%wholeEvery == 0
	snap := h.Read(ctx, all, watched)
	if ctx.Err() != nil {
		return false // it may be in part
	}
	h.seq++
	h.watched = watched
	h.Reading = Reading{TakenAt: snap.TakenAt, Boot: h.Options.Boot()}
	if !snap.ReadAt.IsZero() { // files were read earlier
		age := max(snap.TakenAt.Sub(snap.ReadAt), 0)
		h.TakenAt, h.Reading.Boot = snap.ReadAt, h.Reading.Boot-age
	}
	for i := range snap.Containers {
		h.see(&snap.Containers[i])
	}
	for id, t := range h.containers {
		if t.seen != h.seq && (all || t.State == usage.Running) {
			delete(h.containers, id)
			h.gone = append(h.gone, gone{id, h.seq})
		}
	}
	h.nameNetworks()
	if watched && h.Quotas != nil {
		h.readQuotas()
	}
	return true
}

// see takes in what a reading says of a container.
func (h *Hub) see(c *usage.Container) {
	now := containerOf(c)
	t := h.containers[c.ID]
	if t == nil {
		t = &tracked{Container: now, identity: h.seq, total: h.seq}
		t.StartedAt = time.Time{}
		h.containers[c.ID] = t
		t.State = usage.Stopped
	}
	now.Network = t.Network // the word for it follows
	if !t.is(&now) {
		t.identity = h.seq
	}
	// Between two readings it may have ended and begun again, or the other way round.
	again := !t.StartedAt.Equal(now.StartedAt)
	if now.State == usage.Running && (t.State == usage.Stopped || again) || now.State == usage.Stopped && again {
		t.started = h.seq
	}
	if now.State == usage.Stopped && (t.State == usage.Running || again) || t.State == usage.Running && again {
		t.stopped = h.seq
	}
	if t.Total != now.Total {
		t.total = h.seq
	}
	t.Container, t.seen = now, h.seq
	t.mode, t.shares = c.NetworkMode, c.SharesWith
	if c.OnHost {
		t.mode = "host"
	}
}

// nameNetworks finds the word for each container's network, once all names are known.
func (h *Hub) nameNetworks() {
	for _, t := range h.containers {
		if t.seen != h.seq {
			continue
		}
		if word := h.network(t); word != t.Network {
			t.Network, t.identity = word, h.seq
		}
	}
}

// network returns the word for a container's network: a runtime names the container that it is
// shared with by its id.
func (h *Hub) network(t *tracked) string {
	other, shared := strings.CutPrefix(t.mode, "container:")
	if t.shares != "" {
		other, shared = t.shares, true
	}
	if !shared {
		return t.mode
	}
	if owner := h.containers[other]; owner != nil && owner.Name != "" {
		return "container:" + owner.Name
	}
	return "container:" + usage.ShortID(other)
}

// readQuotas takes in alerts, and every 10 s how quotas stand.
func (h *Hub) readQuotas() {
	h.readAlerts()
	if h.quotasSeq != 0 && h.Reading.Boot-h.quotasAt < quotasEvery {
		return
	}
	h.quotasAt = h.Reading.Boot
	standing := QuotaState{Quotas: h.Quotas.Status(), Foremost: h.Quotas.Foremost()}
	slices.SortStableFunc(standing.Quotas, func(a, b quota.Status) int { return cmp.Compare(b.Ratio, a.Ratio) })
	standing.Quotas = standing.Quotas[:min(len(standing.Quotas), quotasMost)]
	if h.quotasSeq == 0 || !reflect.DeepEqual(standing, h.quotas) {
		h.quotas, h.quotasSeq = standing, h.seq
	}
}

// readAlerts takes in alerts. Those that are listed no more have ended: where more than a thousand
// end at once, as with a period, the last thousand are listed.
func (h *Hub) readAlerts() {
	for id, a := range h.alerts {
		a.listed = false
		h.alerts[id] = a
	}
	for _, a := range h.Quotas.Alerts() {
		known, there := h.alerts[a.ID]
		if !there || known.State != a.State || !known.StartsAt.Equal(a.StartsAt) || !known.EndsAt.Equal(a.EndsAt) {
			known.seq = h.seq
		}
		h.alerts[a.ID] = alert{a, known.seq, true}
	}
	for id, a := range h.alerts {
		if !a.listed && a.State == quota.Firing {
			a.State, a.EndsAt, a.seq = quota.Resolved, h.TakenAt, h.seq
			h.alerts[id] = a
		}
	}
}

// since returns what a viewer lacks that was told of the reading sent, 0 for none.
func (h *Hub) since(sent uint64) []*Message {
	if sent == 0 || sent < h.lost {
		return h.everything()
	}
	var changed []Container
	var lives []*Message
	sample := Sample{Reading: h.Reading}
	for _, t := range h.containers {
		switch {
		case t.identity > sent:
			changed = append(changed, t.Container)
		case t.total > sent:
			sample.Totals = append(sample.Totals, t.Total)
		}
		lives = append(lives, t.lives(sent)...)
	}
	var batch []*Message
	if ids := h.goneSince(sent); len(ids) > 0 {
		batch = append(batch, &Message{Event: Removed{ids}})
	}
	if len(changed) > 0 {
		batch = append(batch, &Message{Event: Containers{Reading: h.Reading, Containers: inOrder(changed)}})
	}
	batch = append(batch, lives...)
	batch = append(batch, &Message{Event: sample})
	if h.quotasSeq > sent {
		batch = append(batch, &Message{Event: h.quotas})
	}
	return append(batch, h.alertsOf(func(a alert) bool { return a.seq > sent })...)
}

// lives returns that a container has begun and ended since a reading, what it does now last.
func (t *tracked) lives(sent uint64) (messages []*Message) {
	if t.started > sent {
		messages = append(messages, &Message{Event: Started{t.ID, t.Name}})
	}
	if t.stopped > sent {
		messages = append(messages, &Message{Event: Stopped{t.ID, t.Name, t.StoppedAt}})
	}
	if t.State == usage.Running {
		slices.Reverse(messages)
	}
	return messages
}

// everything returns what a new viewer lacks.
func (h *Hub) everything() []*Message {
	if h.allSeq == h.seq {
		return h.all
	}
	all := make([]Container, 0, len(h.containers))
	for _, t := range h.containers {
		all = append(all, t.Container)
	}
	h.all = []*Message{{Event: Containers{Reading: h.Reading, Replace: true, Containers: inOrder(all)}}}
	if h.quotasSeq > 0 {
		h.all = append(h.all, &Message{Event: h.quotas})
	}
	h.all = append(h.all, h.alertsOf(func(a alert) bool { return a.State == quota.Firing })...)
	h.allSeq = h.seq
	return h.all
}

func (h *Hub) alertsOf(wanted func(alert) bool) (messages []*Message) {
	var list []quota.Alert
	for _, a := range h.alerts {
		if wanted(a) {
			list = append(list, a.Alert)
		}
	}
	slices.SortFunc(list, func(a, b quota.Alert) int {
		return cmp.Or(a.StartsAt.Compare(b.StartsAt), cmp.Compare(a.ID, b.ID))
	})
	for _, a := range list {
		messages = append(messages, &Message{Event: Alert{a}})
	}
	return messages
}

func (h *Hub) goneSince(sent uint64) (ids []string) {
	for _, g := range h.gone {
		if g.seq > sent {
			ids = append(ids, g.id)
		}
	}
	return ids
}

// forget drops what all viewers have been told: least is the reading that each of them has.
func (h *Hub) forget(least uint64) {
	h.gone = slices.DeleteFunc(h.gone, func(g gone) bool { return g.seq <= least })
	if len(h.gone) > goneMost {
		h.gone, h.lost = nil, h.seq
	}
	maps.DeleteFunc(h.alerts, func(_ string, a alert) bool { return !a.listed && a.seq <= least })
	if len(h.viewers) == 0 {
		h.all, h.allSeq = nil, 0
	}
}

func inOrder(containers []Container) []Container {
	slices.SortFunc(containers, func(a, b Container) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	return containers
}

func containerOf(c *usage.Container) Container {
	used, byCgroup := c.Used()
	by := ByInterfaces
	switch {
	case byCgroup:
		by = ByCgroup
	case len(c.Interfaces) == 0:
		by = ByNothing
	}
	return Container{
		Total: Total{c.ID, amountOf(&used.Receive), amountOf(&used.Transmit), connectionsOf(c.TCP)},
		User:  c.User(), Name: c.Name, Runtime: c.Runtime, Image: c.Image, Namespace: c.Namespace, Pod: c.Pod,
		Labels: c.Labels, Cgroup: c.Cgroup, State: c.State, StartedAt: c.StartedAt, StoppedAt: c.StoppedAt,
		CountedBy: by, Recalled: !c.Unrecalled, PartOf: c.PartOf(), ParentID: c.ParentID, Reason: c.Reason, Kernel: c.Kernel,
	}
}

func connectionsOf(t *usage.TCP) Connections {
	if t == nil || t.InPart {
		return Connections{}
	}
	return Connections{true, t.Connects, t.Accepts, t.ConnectFailures, t.Resets}
}

func amountOf(c *usage.Counts) Amount {
	return Amount{Used{c.Wire(), c.SYN}, c.Seeded}
}
