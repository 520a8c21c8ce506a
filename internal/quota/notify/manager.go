// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

const (
	againAfter   = time.Minute     // what an Alertmanager was told is told again
	firesAtLeast = time.Minute     // an alert is told as firing, also if it has ended meanwhile
	resolvedFor  = 5 * time.Minute // as long is it told of an end
	batchMax     = 256             // alerts in one request
)

// manager tells an Alertmanager: what fires every minute, and what has ended for five. What it
// knows of that is in memory only.
type manager struct {
	*worker
	instance  string
	timeOfDay func() (now time.Time, trusted bool)
	again     time.Duration      // againAfter, but for tests
	least     time.Duration      // firesAtLeast, but for tests
	begun     time.Time          // by the time of day
	reports   map[string]*report // by the alert's id
}

// report is what the Alertmanager was told of an alert.
type report struct {
	alert   quota.Alert
	labels  string    // as labelKey
	listed  bool      // by the source
	told    string    // the state that it took last, "" for none
	at      time.Time // it took that
	fired   time.Time // it took first that the alert fires, or an earlier process was to tell it
	ended   time.Time // it took the end first
	refused string    // the state that it will never take
}

func newManager(w *worker, o Options) *manager {
	m := &manager{worker: w, instance: o.Instance, timeOfDay: o.TimeOfDay, again: againAfter, least: firesAtLeast, reports: map[string]*report{}}
	m.begun, _ = o.TimeOfDay()
	return m
}

func (m *manager) round(ctx context.Context) time.Duration {
	m.look()
	due, wait := m.due()
	defer m.count()
	for batch := range slices.Chunk(due, batchMax) {
		result, err := m.tell(ctx, batch)
		for i := 0; result == refused && len(batch) > 1 && i < len(batch); i++ {
			// Which of them it means is found out by telling them one by one.
			if r, e := m.tell(ctx, batch[i:i+1]); r != taken && r != refused {
				result, err = r, e
			}
		}
		switch result {
		case cut:
			return idle
		case alone, away:
			return m.pause(batch[0].alert, err)
		}
	}
	return wait
}

// look takes in what the source says of alerts.
func (m *manager) look() {
	now := m.now()
	today, _ := m.timeOfDay()
	for _, r := range m.reports {
		r.listed = false
	}
	for _, a := range m.source.Firing(m.config.Name) {
		r := m.reports[a.ID]
		if r == nil {
			r = &report{labels: labelKey(labels(a, m.instance))}
			if a.State == quota.Resolved && a.StartsAt.Before(m.begun) {
				r.fired = now.Add(-max(today.Sub(a.StartsAt), 0))
			}
			m.reports[a.ID] = r
		}
		r.alert, r.listed = a, true
	}
	for id, r := range m.reports {
		switch {
		case r.listed:
		case r.told == "", r.told == quota.Resolved && now.Sub(r.ended) >= resolvedFor:
			delete(m.reports, id)
		case r.alert.State == quota.Firing: // its rule names others now, or is gone
			r.alert.State, r.alert.EndsAt = quota.Resolved, today
		}
	}
}

// state is what to tell of an alert.
func (m *manager) state(r *report) string {
	if r.alert.State == quota.Firing || r.fired.IsZero() || m.now().Sub(r.fired) < m.least {
		return quota.Firing
	}
	return quota.Resolved
}

// due returns what is to be told now, and how long to wait at most for more.
func (m *manager) due() (due []*report, wait time.Duration) {
	wait = idle
	for _, r := range m.foremost() {
		at := m.dueAt(r)
		switch left := at.Sub(m.now()); {
		case at.IsZero():
		case left <= 0:
			due = append(due, r)
			wait = min(wait, m.again)
		default:
			wait = min(wait, left)
		}
	}
	slices.SortFunc(due, func(x, y *report) int {
		return cmp.Or(x.alert.StartsAt.Compare(y.alert.StartsAt), cmp.Compare(x.alert.ID, y.alert.ID))
	})
	return due, wait
}

// dueAt returns when to tell of an alert next, zero for never.
func (m *manager) dueAt(r *report) time.Time {
	state, at := m.state(r), r.at.Add(m.again)
	switch {
	case r.refused == state:
		return time.Time{}
	case r.told != state:
		return m.now()
	case state == quota.Resolved && m.now().Sub(r.ended) >= resolvedFor:
		return time.Time{}
	case state == quota.Firing && r.alert.State == quota.Resolved && r.fired.Add(m.least).Before(at):
		return r.fired.Add(m.least)
	}
	return at
}

// foremost returns one report for each set of labels, by which an Alertmanager knows an alert:
// that of one that fires, or else of the latest.
func (m *manager) foremost() map[string]*report {
	first := map[string]*report{}
	for _, r := range m.reports {
		if other := first[r.labels]; other == nil || m.before(r, other) {
			first[r.labels] = r
		}
	}
	for _, r := range m.reports {
		if other := first[r.labels]; r != other && r.alert.State == quota.Resolved && other.told != "" {
			r.told = quota.Resolved // it was told what has taken its place
		}
	}
	return first
}

func (m *manager) before(x, y *report) bool {
	if fires := m.state(x) == quota.Firing; fires != (m.state(y) == quota.Firing) {
		return fires
	}
	return cmp.Or(x.alert.StartsAt.Compare(y.alert.StartsAt), cmp.Compare(x.alert.ID, y.alert.ID)) > 0
}

// tell tells of alerts once.
func (m *manager) tell(ctx context.Context, batch []*report) (outcome, error) {
	alerts := make([]quota.Alert, len(batch))
	for i, r := range batch {
		alerts[i] = r.alert
		if alerts[i].State = m.state(r); alerts[i].State == quota.Firing {
			alerts[i].EndsAt = time.Time{}
		}
	}
	result, err := m.attempt(ctx, alerts)
	switch {
	case result == taken:
		for i, r := range batch {
			m.took(r, alerts[i].State)
		}
	case result == refused && len(batch) == 1:
		batch[0].refused = alerts[0].State
		m.series.dropped.Add(1)
		m.log.Error("notifier refuses an alert; it was dropped", "alert", alerts[0].ID, "state", alerts[0].State, "err", err)
	}
	return result, err
}

// took notes that the Alertmanager took an alert in a state.
func (m *manager) took(r *report, state string) {
	r.at = m.now()
	if r.told == state {
		return
	}
	r.told = state
	m.series.sent.Add(1)
	switch {
	case state == quota.Resolved:
		r.ended = r.at
	case r.fired.IsZero():
		r.fired = r.at
	}
}

// count shows how many alerts are to be told for the first time.
func (m *manager) count() {
	waiting := uint64(0)
	for _, r := range m.foremost() {
		if state := m.state(r); r.told != state && r.refused != state {
			waiting++
		}
	}
	m.series.waiting.Store(waiting)
}
