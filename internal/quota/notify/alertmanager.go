// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

const (
	// firesFor is how long an Alertmanager takes an alert for firing when it hears no
	// more of us. It does not depend on its own resolve_timeout.
	firesFor     = 5 * againAfter
	testFiresFor = 2 * time.Minute
)

// alertmanager posts alerts to an Alertmanager.
type alertmanager struct {
	Alertmanager
	options Options
	server
}

// postable is an alert as the API v2 takes it.
type postable struct {
	StartsAt     time.Time         `json:"startsAt"`
	EndsAt       time.Time         `json:"endsAt,omitzero"` // zero: its resolve_timeout holds
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	GeneratorURL string            `json:"generatorURL,omitempty"`
}

func (m *alertmanager) deliver(ctx context.Context, alerts []quota.Alert) error {
	posted := make([]postable, len(alerts))
	for i, a := range alerts {
		posted[i] = m.postable(a)
	}
	body, err := json.Marshal(posted)
	if err != nil {
		return &failure{cause: fmt.Errorf("encode alerts: %w", err), permanent: true}
	}
	to, err := url.JoinPath(m.URL, "api/v2/alerts")
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	return m.post(ctx, to, body, nil)
}

// postable returns an alert as an Alertmanager takes it, which is not if it ends before
// it starts, as when the clock was set back.
func (m *alertmanager) postable(a quota.Alert) postable {
	p := postable{
		StartsAt:     a.StartsAt,
		EndsAt:       a.EndsAt,
		Labels:       labels(a, m.options.Instance),
		Annotations:  annotations(a),
		GeneratorURL: m.options.GeneratorURL,
	}
	now, trusted := m.options.TimeOfDay()
	switch {
	case a.State == quota.Resolved:
	case !trusted: // what is to come for us may have passed for the Alertmanager
		return p
	case a.Test:
		p.EndsAt = now.Add(testFiresFor)
	default:
		p.EndsAt = now.Add(firesFor)
	}
	if p.EndsAt.Before(p.StartsAt) {
		p.StartsAt = p.EndsAt
	}
	return p
}

// labels returns what an Alertmanager knows an alert by. The instance is one of them,
// or hosts with the same rules would resolve each other's alerts.
func labels(a quota.Alert, instance string) map[string]string {
	all := map[string]string{}
	for name, value := range a.Labels {
		all[labelName(name)] = value
	}
	name := "NettallyQuota"
	if a.Level == quota.LevelRate {
		name = "NettallyRate"
	}
	maps.Copy(all, map[string]string{
		"alertname": name, "quota": a.Quota, "key": a.Key, "level": a.Level, "instance": instance,
	})
	if a.Test {
		all["test"] = "true"
	}
	for name, value := range all {
		all[name] = strings.ToValidUTF8(value, "\uFFFD")
	}
	return all
}

// labelName replaces what a label's name can't have, as Prometheus does with the
// labels of containers.
func labelName(name string) string {
	safe := strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
	if safe == "" || safe[0] >= '0' && safe[0] <= '9' {
		safe = "_" + safe
	}
	return safe
}

// labelKey returns labels as a text that no other labels have.
func labelKey(labels map[string]string) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&text, "%s=%q,", name, labels[name])
	}
	return text.String()
}

func annotations(a quota.Alert) map[string]string {
	all := map[string]string{
		"summary": strings.ToValidUTF8(a.Summary, "\uFFFD"),
		"used":    amount(a.Used, a.Unit),
		"limit":   amount(a.Limit, a.Unit),
	}
	if !a.PeriodStart.IsZero() {
		all["period_start"] = a.PeriodStart.Format(time.RFC3339)
	}
	if !a.PeriodEnd.IsZero() {
		all["period_end"] = a.PeriodEnd.Format(time.RFC3339)
	}
	if a.Projected > 0 {
		all["projected"] = amount(a.Projected, a.Unit)
	}
	return all
}

// amount is exact: who wants it rounded has the summary.
func amount(value float64, unit string) string {
	return strconv.FormatFloat(value, 'f', -1, 64) + " " + unit
}
