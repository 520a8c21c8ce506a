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
	// ID is quota/key/start of the period/level: the same alert has the same id
	// however often it is said, before and after a restart.
	ID    string
	Quota string // name of the rule
	Key   string // what the rule counts by: a container's id, a name, a pod…
	Level string // a percentage of the limit, such as "80", or LevelProjection or LevelRate
	State string // Firing or Resolved

	StartsAt time.Time
	EndsAt   time.Time // zero while firing

	Used  float64 // in Unit, as of the alert
	Limit float64 // in Unit
	Unit  string  // "bytes", "packets", "requests", and of rates "bytes/s", "bits/s"…
	Ratio float64 // Used / Limit

	// The period that the alert is about: from PeriodStart up to, not with, PeriodEnd.
	// PeriodEnd is zero where there is none: lifetime, rolling windows, rates.
	PeriodStart time.Time
	PeriodEnd   time.Time
	Projected   float64 // in Unit, at the end of the period; 0 where it is not known

	Labels    map[string]string // of the container, or of what the key stands for
	Summary   string            // one line of plain English
	Notifiers []string          // names of the notifiers that are to be told
	Test      bool              // sent by `nettally quota test`: nothing was reached
}
