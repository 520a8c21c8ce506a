// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/usage"
)

// Totals have the labels of what they are added up by, named as in nettally_container_info, also
// those that were added up by other things before; hostile text fails no scrape, and costs no byte.
func TestPeriodMetrics(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	total := func(period string, receive uint64, key ...string) PeriodTotal {
		of := PeriodTotal{Period: period, Start: start, End: start.AddDate(0, 1, 0), Key: map[string]string{}, Receive: receive, Transmit: 2 * receive}
		for i := 0; i < len(key); i += 2 {
			of.Key[key[i]] = key[i+1]
		}
		return of
	}
	settings := func() Settings {
		return Settings{Labels: []string{"com.example/Team", "com.example/team"}, PeriodBy: []string{"namespace", "label:com.example/team"}}
	}
	periods := Periods{Ledger: "u-u", Beyond: 3, Totals: []PeriodTotal{
		total("2026-11", 1, "namespace", "prod", "label:com.example/team", "red"),
		total("2026-11", 2, "namespace", "\x00\u202e<b>\"\n", "label:com.example/team", ""),
		total("2026-11", 4, "namespace", "\xff", "label:com.example/team", ""),
		total("2026-11", 8, "namespace", "\xfe", "label:com.example/team", ""),
		total("2026-11", 16, "name", "before"),
		total("2026-11", 32, "label:gone", "x"),
	}}
	c := newCollector(settings).of(usage.Snapshot{}, periods)
	series := func(labels, n string) string {
		return "nettally_period_bytes_total{" + labels + `,period="2026-11"} ` + n + "\n"
	}
	const team = `label_com_example_team_conflict2`
	labels := func(direction, teamIs, gone, name, namespace string) string {
		return `direction="` + direction + `",` + team + `="` + teamIs + `",label_gone="` + gone + `",ledger="u-u",name="` + name + `",namespace="` + namespace + `"`
	}
	want := `
		# HELP nettally_period_bytes_total Bytes on the wire, received and transmitted by the containers in the period, as the ledger has them on the disk. It grows within its period over restarts; ledger tells a host that was installed anew from its predecessor.
		# TYPE nettally_period_bytes_total counter
		` + series(labels("receive", "red", "", "", "prod"), "1") + series(labels("transmit", "red", "", "", "prod"), "2") +
		series(labels("receive", "", "", "", "\x00\u202e<b>\\\"\\n"), "2") + series(labels("transmit", "", "", "", "\x00\u202e<b>\\\"\\n"), "4") +
		series(labels("receive", "", "", "", "\uFFFD"), "12") + series(labels("transmit", "", "", "", "\uFFFD"), "24") +
		series(labels("receive", "", "", "before", ""), "16") + series(labels("transmit", "", "", "before", ""), "32") +
		series(labels("receive", "", "x", "", ""), "32") + series(labels("transmit", "", "x", "", ""), "64") + `
		# HELP nettally_period_end_seconds When the period ends, or ended, as Unix time.
		# TYPE nettally_period_end_seconds gauge
		nettally_period_end_seconds{ledger="u-u",period="2026-11"} 1.7960832e+09
		# HELP nettally_period_start_seconds When the period began, as Unix time.
		# TYPE nettally_period_start_seconds gauge
		nettally_period_start_seconds{ledger="u-u",period="2026-11"} 1.7934912e+09
		# HELP nettally_beyond_limits Containers, interfaces and keys of quotas and periods that are beyond a bound of the section limits: counted with others, or left out here.
		# TYPE nettally_beyond_limits gauge
		nettally_beyond_limits{limit="containers"} 0
		nettally_beyond_limits{limit="interfaces"} 0
		nettally_beyond_limits{limit="per_user"} 0
		nettally_beyond_limits{limit="series_per_period"} 3
		nettally_beyond_limits{limit="series_per_quota"} 0
	`
	err := testutil.CollectAndCompare(c, strings.NewReader(want), "nettally_period_bytes_total", "nettally_period_start_seconds",
		"nettally_period_end_seconds", "nettally_beyond_limits")
	if err != nil {
		t.Error(err)
	}
}
