// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/quota"
)

// periodsOf returns the periods that totals are kept of, nil if of none.
func periodsOf(config *configs.Config) *ledger.Periods {
	p := config.Metrics.Periods
	if len(p.By) == 0 {
		return nil
	}
	return &ledger.Periods{
		Bounds: quota.Period{Every: quota.Every(p.Every), Day: p.Day, Location: p.Location}.Bounds,
		Name:   func(start time.Time) string { return periodName(p.Every, p.Day, start) },
		By:     p.By,
		Keep:   p.Keep,
		Keys:   config.Limits.SeriesPerPeriod,
	}
}

// periodName names a period as ISO 8601 does: 2026-11, 2026-11-15/P1M, 2026-W48 or 2026-11-30.
// Periods of different lengths have different names, or a changed configuration would add one to
// the other.
func periodName(every string, day int, start time.Time) string {
	switch {
	case every == string(quota.Weekly):
		year, week := start.ISOWeek()
		return fmt.Sprintf("%d-W%02d", year, week)
	case every == string(quota.Monthly) && day == 1:
		return start.Format("2006-01")
	case every == string(quota.Monthly):
		return start.Format(time.DateOnly) + "/P1M"
	}
	return start.Format(time.DateOnly)
}

// periods are the totals of periods for the exporter.
func (d *daemon) periods() exporter.Periods {
	kept := d.ledger.Totals()
	shown := exporter.Periods{Ledger: kept.Ledger, Beyond: kept.Beyond, Totals: make([]exporter.PeriodTotal, len(kept.Totals))}
	for i, t := range kept.Totals {
		shown.Totals[i] = exporter.PeriodTotal(t)
	}
	return shown
}
