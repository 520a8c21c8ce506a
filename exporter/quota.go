// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/quota"
)

// errNoQuotas is the answer where Options.Quotas is nil.
var errNoQuotas = errors.New("read quotas: there are none here")

// Quotas is where quotas are read and changed: *quota.Engine. It is called concurrently.
type Quotas interface {
	Status() []quota.Status
	Alerts() []quota.Alert
	// Set says what a key has used; an error that wraps quota.ErrUnknown is answered 404,
	// one that wraps quota.ErrNotNow 503, and any other 400.
	Set(name, key string, used uint64) error
}

// QuotaList is the body of GET /api/v1/quotas. docs/openapi.yaml documents it and the types
// it is made of.
type QuotaList struct {
	Quotas []Quota `json:"quotas"` // in the order of the configuration, then by key
	// ClockDistrust says why no period ends now, "" while the host's clock is trusted.
	ClockDistrust string `json:"clock_distrust"`
}

// Quota is how one key of a quota stands, or a quota without one: its key is "".
type Quota struct {
	Quota       string       `json:"quota"`
	Key         string       `json:"key"`
	Name        string       `json:"name"`
	Per         string       `json:"per"`
	Count       string       `json:"count"`
	Source      string       `json:"source"`
	Used        float64      `json:"used"`
	Limit       float64      `json:"limit"`
	Unit        string       `json:"unit"`
	Decimal     bool         `json:"decimal"`
	Ratio       float64      `json:"ratio"`
	Every       string       `json:"every"`
	PeriodStart *time.Time   `json:"period_start"`
	PeriodEnd   *time.Time   `json:"period_end"`
	Projected   *float64     `json:"projected"`
	Levels      []QuotaLevel `json:"levels"`
	Notify      []string     `json:"notify"`
}

// QuotaLevel is a level of a quota's alerts.
type QuotaLevel struct {
	Level  string `json:"level"`
	Firing bool   `json:"firing"`
}

// AlertList is the body of GET /api/v1/alerts.
type AlertList struct {
	Alerts []Alert `json:"alerts"` // in the order in which they fired or were resolved
}

// Alert is an alert as the API shows it.
type Alert struct {
	ID          string            `json:"id"`
	Quota       string            `json:"quota"`
	Key         string            `json:"key"`
	Level       string            `json:"level"`
	State       string            `json:"state"`
	StartsAt    time.Time         `json:"starts_at"`
	EndsAt      *time.Time        `json:"ends_at"`
	Used        float64           `json:"used"`
	Limit       float64           `json:"limit"`
	Unit        string            `json:"unit"`
	Ratio       float64           `json:"ratio"`
	PeriodStart *time.Time        `json:"period_start"`
	PeriodEnd   *time.Time        `json:"period_end"`
	Projected   float64           `json:"projected"`
	Labels      map[string]string `json:"labels"`
	Summary     string            `json:"summary"`
	Notifiers   []string          `json:"notifiers"`
}

// QuotaChange is the body of POST /api/v1/quotas/{name}/set, and of reset without Used.
type QuotaChange struct {
	Key  string  `json:"key"`            // "" for the only one, or all to reset
	Used *uint64 `json:"used,omitempty"` // in the quota's unit
}

func quotaOf(s quota.Status) Quota {
	q := Quota{
		Quota: s.Quota, Key: clean(s.Key), Name: clean(s.Name), Per: s.Per, Count: string(s.Count), Source: s.Source,
		Used: s.Used, Limit: s.Limit, Unit: s.Unit, Decimal: s.Decimal, Ratio: s.Ratio, Every: string(s.Every),
		PeriodStart: utc(s.PeriodStart), PeriodEnd: utc(s.PeriodEnd),
		Levels: []QuotaLevel{}, Notify: append([]string{}, s.Notify...),
	}
	if s.Predictable {
		q.Projected = &s.Projected
	}
	for _, l := range s.Levels {
		q.Levels = append(q.Levels, QuotaLevel{l.Name, l.Firing})
	}
	return q
}

func alertOf(a quota.Alert) Alert {
	labels := map[string]string{}
	for name, value := range a.Labels {
		labels[clean(name)] = clean(value)
	}
	return Alert{
		ID: clean(a.ID), Quota: a.Quota, Key: clean(a.Key), Level: a.Level, State: a.State,
		StartsAt: a.StartsAt.UTC(), EndsAt: utc(a.EndsAt), Used: a.Used, Limit: a.Limit, Unit: a.Unit, Ratio: a.Ratio,
		PeriodStart: utc(a.PeriodStart), PeriodEnd: utc(a.PeriodEnd), Projected: a.Projected,
		Labels: labels, Summary: clean(a.Summary), Notifiers: append([]string{}, a.Notifiers...),
	}
}

func (e *Exporter) listQuotas(w http.ResponseWriter, r *http.Request) {
	if !e.plain(w, r) {
		return
	}
	list := QuotaList{Quotas: []Quota{}, ClockDistrust: e.distrust()}
	for _, s := range e.quotas.Status() {
		list.Quotas = append(list.Quotas, quotaOf(s))
	}
	e.answer(w, list)
}

func (e *Exporter) listAlerts(w http.ResponseWriter, r *http.Request) {
	if !e.plain(w, r) {
		return
	}
	list := AlertList{Alerts: []Alert{}}
	for _, a := range e.quotas.Alerts() {
		list.Alerts = append(list.Alerts, alertOf(a))
	}
	e.answer(w, list)
}

// plain answers a request with parameters, and where there are no quotas.
func (e *Exporter) plain(w http.ResponseWriter, r *http.Request) bool {
	if _, err := parseParameters(r.URL.RawQuery); err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return false
	}
	if e.quotas == nil {
		e.fail(w, http.StatusServiceUnavailable, errNoQuotas)
	}
	return e.quotas != nil
}

// keysOf returns how many keys a quota has.
func (e *Exporter) keysOf(name string) (keys int) {
	for _, s := range e.quotas.Status() {
		if s.Quota == name && s.Key != "" {
			keys++
		}
	}
	return keys
}

// changeQuota sets what a quota's key has used, or with reset to nothing.
func (e *Exporter) changeQuota(reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		change := QuotaChange{}
		decoder := json.NewDecoder(r.Body)
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&change)
		switch {
		case errors.Is(err, io.EOF) && reset: // all keys
		case err != nil:
			e.fail(w, http.StatusBadRequest, fmt.Errorf("read change of quota: %w", err))
			return
		case reset == (change.Used != nil):
			e.fail(w, http.StatusBadRequest, errors.New("read change of quota: used belongs to set, and set needs it"))
			return
		}
		if !e.plain(w, r) {
			return
		}
		name, used := r.PathValue("name"), uint64(0)
		if change.Used != nil {
			used = *change.Used
		}
		if !reset && change.Key == "" && e.keysOf(name) > 1 {
			// Without a key 0 would be that of all: only a reset is.
			e.fail(w, http.StatusBadRequest, fmt.Errorf("set quota %s: it has several keys; say which", name))
			return
		}
		err = e.quotas.Set(name, change.Key, used)
		switch {
		case errors.Is(err, quota.ErrUnknown):
			e.fail(w, http.StatusNotFound, err)
		case errors.Is(err, quota.ErrNotNow):
			e.fail(w, http.StatusServiceUnavailable, err)
		case err != nil:
			e.fail(w, http.StatusBadRequest, err)
		default:
			e.answer(w, status{"ok"})
		}
	}
}

// testNotifier has a notifier send an alert that says it is a test.
func (e *Exporter) testNotifier(w http.ResponseWriter, r *http.Request) {
	if e.notifierTest == nil {
		e.fail(w, http.StatusServiceUnavailable, errors.New("test notifier: there are none here"))
		return
	}
	err := e.notifierTest(r.Context(), r.PathValue("name"))
	switch {
	case errors.Is(err, quota.ErrUnknown):
		e.fail(w, http.StatusNotFound, err)
	case err != nil:
		e.fail(w, http.StatusBadGateway, err)
	default:
		e.answer(w, status{"ok"})
	}
}

// quotaDescs are the metrics of quotas. docs/METRICS.md says what each means.
type quotaDescs struct {
	ratio, start, end, active *prometheus.Desc
	byUnit                    map[string]amountDescs
}

type amountDescs struct{ used, limit, projected *prometheus.Desc }

var (
	quotaLabels  = []string{"key", "quota"}
	activeLabels = []string{"key", "quota", "threshold"}
)

func (d *descs) addQuotas() quotaDescs {
	q := quotaDescs{byUnit: map[string]amountDescs{}}
	q.ratio = d.add("nettally_quota_used_ratio", "Used, or the rate now, divided by the limit.", quotaLabels...)
	for _, unit := range []string{quota.Bytes, quota.Packets, quota.Requests, quota.Connections} {
		q.byUnit[unit] = amountDescs{
			used:  d.add("nettally_quota_used_"+unit, "What was used in the running period, in "+unit+".", quotaLabels...),
			limit: d.add("nettally_quota_limit_"+unit, "The limit, in "+unit+".", quotaLabels...),
			projected: d.add("nettally_quota_projected_"+unit, "What will be used at the end of the period if it goes on like this, in "+
				unit+"; there once a tenth of the period was seen since the key began or was set.", quotaLabels...),
		}
	}
	q.start = d.add("nettally_quota_period_start_seconds", "When the running period began, as Unix time.", quotaLabels...)
	q.end = d.add("nettally_quota_period_end_seconds", "When the running period ends, as Unix time.", quotaLabels...)
	q.active = d.add("nettally_quota_alert_active", "1 while the alert of a threshold fires, else 0. "+
		"A threshold is a percentage of the limit, projection or rate.", activeLabels...)
	return q
}

// closest returns the keys of each quota that are closest to their limit, most of them at most,
// and how many others there are. All are in the order of their quotas.
func closest(all []quota.Status, most int) (shown []quota.Status, left int) {
	if most <= 0 {
		return all, 0
	}
	for len(all) > 0 {
		n := slices.IndexFunc(all, func(s quota.Status) bool { return s.Quota != all[0].Quota })
		if n < 0 {
			n = len(all)
		}
		keys := all[:n]
		all = all[n:]
		if n > most {
			keys = slices.Clone(keys)
			slices.SortStableFunc(keys, func(a, b quota.Status) int { return cmp.Compare(b.Ratio, a.Ratio) })
			keys = keys[:most]
			slices.SortFunc(keys, func(a, b quota.Status) int { return strings.Compare(a.Key, b.Key) })
			left += n - most
		}
		shown = append(shown, keys...)
	}
	return shown, left
}

func (s *scrape) quotas(all []quota.Status) {
	all = slices.DeleteFunc(slices.Clone(all), func(q quota.Status) bool { return q.Key == "" })
	all, left := closest(all, s.settings.SeriesPerQuota)
	s.beyond("series_per_quota", left)
	seen := make(map[[2]string]struct{}, len(all))
	for i := range all {
		q := &all[i]
		of := [2]string{s.text(q.Key), s.text(q.Quota)}
		if _, ok := seen[of]; ok {
			s.trouble.WithLabelValues(causeDuplicateQuota).Inc()
			continue
		}
		seen[of] = struct{}{}
		labels, d := pairs(quotaLabels, of[:]...), &s.descs.quota
		s.gauge(d.ratio, labels, q.Ratio)
		if amounts, ok := d.byUnit[q.Unit]; ok {
			s.gauge(amounts.used, labels, q.Used)
			s.gauge(amounts.limit, labels, q.Limit)
			if q.Predictable {
				s.gauge(amounts.projected, labels, q.Projected)
			}
		}
		if !q.PeriodStart.IsZero() {
			s.gauge(d.start, labels, float64(q.PeriodStart.UnixMilli())/1e3)
		}
		if !q.PeriodEnd.IsZero() {
			s.gauge(d.end, labels, float64(q.PeriodEnd.UnixMilli())/1e3)
		}
		for _, level := range q.Levels {
			active := 0.0
			if level.Firing {
				active = 1
			}
			s.gauge(d.active, pairs(activeLabels, of[0], of[1], level.Name), active)
		}
	}
}
