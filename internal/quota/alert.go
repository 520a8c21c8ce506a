// SPDX-License-Identifier: Apache-2.0

package quota

import "time"

// States of an alert.
const (
	Firing   = "firing"
	Resolved = "resolved"
)

// Levels of an alert that are no percentage of the limit.
const (
	LevelProjection = "projection" // the period is going to end above its limit
	LevelRate       = "rate"       // a rate has been above its bound for long enough
)

// An Alert says that one level of a quota was reached, or is no longer.
type Alert struct {
	// ID is quota/key/start/level, where the start is that of the period, or of the
	// alert where there is no period. The same alert has the same id however often it
	// is said, before and after a restart.
	ID    string `json:"id"`
	Quota string `json:"quota"` // name of the rule
	Key   string `json:"key"`   // what the rule counts by: a container's id, a name, a pod…
	Level string `json:"level"` // a percentage of the limit, such as "80", or LevelProjection or LevelRate
	State string `json:"state"` // Firing or Resolved

	StartsAt time.Time `json:"starts_at"`
	EndsAt   time.Time `json:"ends_at,omitzero"` // zero while firing

	Used  float64 `json:"used"`  // in Unit, as of the alert
	Limit float64 `json:"limit"` // in Unit
	Unit  string  `json:"unit"`  // "bytes", "packets", "requests", "connections", and of rates "bytes/s", "bits/s"…
	Ratio float64 `json:"ratio"` // Used / Limit

	// The period that the alert is about: from PeriodStart up to, not with, PeriodEnd.
	// PeriodEnd is zero where there is none: lifetime, rolling windows, rates.
	PeriodStart time.Time `json:"period_start,omitzero"`
	PeriodEnd   time.Time `json:"period_end,omitzero"`
	Projected   float64   `json:"projected"` // in Unit, at the end of the period; 0 where it is not known

	Labels    map[string]string `json:"labels,omitempty"`    // what is known of the key: name, pod, a label…
	Summary   string            `json:"summary"`             // one line of plain English
	Notifiers []string          `json:"notifiers,omitempty"` // names of the notifiers that are to be told
	Test      bool              `json:"test,omitempty"`      // sent by `nettally quota test`: nothing was reached
}
