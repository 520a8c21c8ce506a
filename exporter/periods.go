// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Periods are totals of periods, of one ledger.
type Periods struct {
	Ledger string // its UUID
	Totals []PeriodTotal
	Beyond int // keys that are counted with others
}

// PeriodTotal is what one key used in one period.
type PeriodTotal struct {
	Period     string // its name
	Start, End time.Time
	// Key holds a value for "namespace", "name", "pod" and "label:" with a key, those that the
	// usage was added up by.
	Key               map[string]string
	Receive, Transmit uint64 // bytes
}

// periodLabels are the labels of nettally_period_bytes_total. Totals may have been added up by
// other things before: each has all labels, those that it lacks are empty, which is as good as
// not there.
type periodLabels struct {
	desc  *prometheus.Desc
	names []string // sorted
	keys  []string // of [PeriodTotal.Key] for each of them, "" for the others
}

func newPeriodLabels(settings Settings, periods Periods) periodLabels {
	const label = "label:"
	by := map[string]bool{}
	for _, key := range settings.PeriodBy {
		by[key] = true
	}
	for i := range periods.Totals {
		for key := range periods.Totals[i].Key {
			by[key] = true
		}
	}
	// As nettally_container_info has them; keys that it does not have any more come behind.
	known := slices.Clone(settings.Labels)
	var extra bool
	for _, key := range slices.Sorted(maps.Keys(by)) {
		if name, ok := strings.CutPrefix(key, label); ok && !slices.Contains(known, name) {
			known, extra = append(known, name), true
		}
	}
	names := labelNames(known)
	if extra {
		copy(names, labelNames(settings.Labels))
	}
	type pair struct{ name, key string }
	all := []pair{{"direction", ""}, {"ledger", ""}, {"period", ""}}
	taken := map[string]bool{}
	for i, key := range known {
		if by[label+key] && !taken[names[i]] {
			taken[names[i]] = true
			all = append(all, pair{names[i], label + key})
		}
	}
	for _, name := range []string{"name", "namespace", "pod"} {
		if by[name] {
			all = append(all, pair{name, name})
		}
	}
	slices.SortFunc(all, func(a, b pair) int { return cmp.Compare(a.name, b.name) })
	var of periodLabels
	for _, p := range all {
		of.names, of.keys = append(of.names, p.name), append(of.keys, p.key)
	}
	of.desc = prometheus.NewDesc("nettally_period_bytes_total",
		"Bytes on the wire, received and transmitted by the containers in the period, as the ledger has them on the disk. "+
			"It grows within its period over restarts; ledger tells a host that was installed anew from its predecessor.", of.names, nil)
	return of
}

// periods sends the totals of periods. Those whose labels come out the same are added up.
func (s *scrape) periods(p Periods, labels periodLabels) {
	s.beyond("series_per_period", p.Beyond)
	sums, order := map[string]*PeriodTotal{}, []string{}
	values := make([]string, len(labels.names))
	bounds := map[string]bool{}
	for i := range p.Totals {
		t := &p.Totals[i]
		if !bounds[t.Period] {
			bounds[t.Period] = true
			of := pairs([]string{"ledger", "period"}, p.Ledger, t.Period)
			s.gauge(s.descs.periodStart, of, float64(t.Start.Unix()))
			s.gauge(s.descs.periodEnd, of, float64(t.End.Unix()))
		}
		key := t.Period
		for _, k := range labels.keys {
			key += "\xff" + clean(t.Key[k])
		}
		if sum, ok := sums[key]; ok {
			sum.Receive = saturated(sum.Receive, t.Receive)
			sum.Transmit = saturated(sum.Transmit, t.Transmit)
			continue
		}
		own := *t
		sums[key], order = &own, append(order, key)
	}
	for _, key := range order {
		t := sums[key]
		for d, name := range [...]string{receive: "receive", transmit: "transmit"} {
			for i, label := range labels.names {
				switch label {
				case "direction":
					values[i] = name
				case "ledger":
					values[i] = p.Ledger
				case "period":
					values[i] = t.Period
				default:
					values[i] = clean(t.Key[labels.keys[i]])
				}
			}
			s.counter(labels.desc, pairs(labels.names, values...), [...]uint64{receive: t.Receive, transmit: t.Transmit}[d], nil)
		}
	}
}

func saturated(a, b uint64) uint64 { return min(a, math.MaxUint64-b) + b }
