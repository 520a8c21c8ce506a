// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// examples are the quotas and notifiers that reference.yaml shows in its comments.
func examples(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("reference.yaml")
	must(t, err)
	from := strings.Index(string(text), "# Limits on what")
	var quotas, notifiers []string
	to := &quotas
	for line := range strings.Lines(string(text)[from:]) {
		if strings.HasPrefix(line, "quotas: []") {
			to = &notifiers
		}
		// Comments within an example are comments still.
		if strings.HasPrefix(line, "#   ") {
			*to = append(*to, line[1:])
		}
	}
	return "names: {labels: [team]}\nquotas:\n" + strings.Join(quotas, "") + "notifiers:\n" + strings.Join(notifiers, "")
}

func berlin(t *testing.T) *time.Location {
	t.Helper()
	in, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	return in
}

func TestReferenceExamples(t *testing.T) {
	text := examples(t)
	c := mustLoad(t, text)
	quotas := []Quota{{
		Name: "monthly-egress", Match: QuotaMatch{Name: "web-*", Labels: []QuotaLabel{{"team", "a*"}}},
		Per: "label:team", Count: "transmit_bytes", Limit: 100 << 30, Every: "month", Day: 15, Location: berlin(t),
		AlertAt: []int{50, 80, 100}, Projection: true, Initial: 20 << 30, Notify: []string{"ops"},
	}, {
		Name: "syn-burst", Per: "container", Count: "transmit_tcp_syn",
		Rate:   &QuotaRate{Above: 200, Clear: 100, For: 10 * time.Second},
		Notify: []string{"ops"},
	}}
	sameLocation := cmp.Comparer(func(a, b *time.Location) bool { return a == b || a.String() == b.String() })
	if diff := cmp.Diff(quotas, c.Quotas, cmpopts.IgnoreUnexported(Quota{}), sameLocation); diff != "" {
		t.Errorf("quotas (-want +got):\n%s", diff)
	}
	notifiers := []Notifier{
		{Name: "ops", Alertmanager: &Alertmanager{URL: "http://127.0.0.1:9093", HTTPConfigFile: "/etc/nettally/alertmanager.yaml"}},
		{Name: "hook", Timeout: 5 * time.Second, Webhook: &Webhook{URL: "https://hooks.example.org/x", SecretFile: "/etc/nettally/secret"}},
		{Name: "run", Exec: &Exec{Command: []string{"/usr/local/bin/on-quota", "--verbose"}}},
		{Name: "journal", Log: true},
	}
	if diff := cmp.Diff(notifiers, c.Notifiers, cmpopts.IgnoreUnexported(Notifier{})); diff != "" {
		t.Errorf("notifiers (-want +got):\n%s", diff)
	}
	roundTrip(t, c)
	// Each key that there is is shown, or named.
	for _, k := range itemKeys {
		_, name := split(k.path)
		if !regexp.MustCompile(`\b`+name+`\b`).MatchString(text) && !strings.Contains(text, name+",") {
			t.Errorf("reference.yaml does not mention %s", k.path)
		}
	}
	if needs := mustLoad(t, "").NeedsRestart(c); len(needs) > 0 {
		t.Errorf("needs a restart: %q", needs)
	}
}

func TestQuotaDefaults(t *testing.T) {
	c := mustLoad(t, `quotas: [{name: a, count: total_packets, limit: 1000, period: {every: month}}, {name: b, rate: {count: total_bytes, above: 8Mbit/s}}]`)
	want := []Quota{
		{Name: "a", Per: "name", Count: "total_packets", Limit: 1000, Every: "month", Day: 1, Location: time.Local, AlertAt: []int{80, 100}, Notify: []string{}},
		{Name: "b", Per: "name", Count: "total_bytes", Rate: &QuotaRate{Above: 1e6, Clear: 1e6, Bits: true}, Notify: []string{}},
	}
	if diff := cmp.Diff(want, c.Quotas, cmpopts.IgnoreUnexported(Quota{}), cmp.Comparer(func(a, b *time.Location) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	roundTrip(t, c)
}

// Amounts are shown in the kind of unit that the file has.
func TestQuotaUnits(t *testing.T) {
	for written, want := range map[string]bool{
		"count: total_bytes, limit: 1MB, period: {every: day}":    true,
		"count: total_bytes, limit: 1kB, period: {every: day}":    true,
		"count: total_bytes, limit: 1000B, period: {every: day}":  true,
		"count: total_bytes, limit: 1MiB, period: {every: day}":   false,
		"count: total_bytes, limit: 1.5TiB, period: {every: day}": false,
		"count: total_packets, limit: 5M, period: {every: day}":   false,
		"rate: {count: total_bytes, above: 1MB/s}":                true,
		"rate: {count: total_bytes, above: 1MiB/s}":               false,
		"rate: {count: total_bytes, above: 8Mbit/s}":              false,
	} {
		if got := mustLoad(t, "quotas: [{name: a, "+written+"}]").Quotas[0].Decimal; got != want {
			t.Errorf("%s: decimal %t", written, got)
		}
	}
}

func TestParseAmount(t *testing.T) {
	for _, test := range []struct {
		text, count string
		want        uint64
	}{
		{"0B", "total_bytes", 0}, {"1B", "total_bytes", 1}, {"1kB", "total_bytes", 1000}, {"1KiB", "total_bytes", 1024},
		{"2 MB", "receive_bytes", 2e6}, {"2MiB", "total_bytes", 2 << 20}, {"1.5GB", "total_bytes", 15e8},
		{"1.1KiB", "total_bytes", 1127}, {"100GiB", "total_bytes", 100 << 30}, {"3TB", "total_bytes", 3e12}, {"3TiB", "total_bytes", 3 << 40},
		{"7", "total_packets", 7}, {"1.5k", "transmit_tcp_syn", 1500}, {"5M", "total_packets", 5e6}, {"2T", "total_packets", 2e12},
	} {
		if got, err := ParseAmount(test.text, test.count); err != nil || got != test.want {
			t.Errorf("%s: %d, %v; want %d", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{"", "5", "-5GB", "5gb", "5KB", "5GiBs", "5 GB ", "1e3B", "0x5B", ".5GB", "5.GB", "99999999TiB", "5bit", "NaNB", "١B"} {
		if got, err := ParseAmount(text, "total_bytes"); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
	_, err := ParseAmount("5GB", "total_packets")
	if err == nil || err.Error() != `expected a number such as 1000 or 5M, got "5GB"` {
		t.Errorf("bytes of packets: %v", err)
	}
}

func TestQuotasRefused(t *testing.T) {
	const limit = "count: total_bytes, limit: 1GB, period: {every: day}"
	one := func(quota string) string { return "quotas: [{" + quota + "}]" }
	for _, test := range []struct{ name, text, want string }{
		{"no list", "quotas: {}", "quotas: expected a list, got keys below it"},
		{"no section", "quotas: [a]", `quotas[0]: expected keys below it, got "a"`},
		{"typing error", one("nme: a, " + limit), "quotas[0].nme: unknown key; did you mean quotas[0].name?"},
		{"typing error in a match", one("name: a, match: {nam: web}, " + limit), "quotas[0].match.nam: unknown key; did you mean quotas[0].match.name?"},
		{"typing error in a label", one("name: a, match: {labels: [{nme: x, value: y}]}, " + limit), "quotas[0].match.labels[0].nme: unknown key; did you mean quotas[0].match.labels[0].name?"},
		{"labels as a map", one("name: a, match: {labels: {team: a}}, " + limit), "quotas[0].match.labels: expected a list, got keys below it"},
		{"no name", one(limit), `quotas[0].name: expected a name of letters, digits, dots, dashes and underscores, each only once, got ""`},
		{"slash in a name", one("name: a/b, " + limit), `quotas[0].name: expected a name of letters, digits, dots, dashes and underscores, each only once, got "a/b"`},
		{"name twice", "quotas: [{name: a, " + limit + "}, {name: a, " + limit + "}]", `quotas[1].name: expected a name of letters, digits, dots, dashes and underscores, each only once, got "a"`},
		{"glob", one("name: a, match: {name: 'web['}, " + limit), `quotas[0].match.name: expected a glob such as web-*, got "web["`},
		{"empty glob of name", one(`name: a, match: {name: ""}, ` + limit), `quotas[0].match.name: expected a glob such as web-*, got ""`},
		{"empty glob of id", one(`name: a, match: {id: ""}, ` + limit), `quotas[0].match.id: expected a glob such as 3f2a*, got ""`},
		{"empty glob of image", one(`name: a, match: {image: ""}, ` + limit), `quotas[0].match.image: expected a glob such as nginx:*, got ""`},
		{"empty glob of runtime", one(`name: a, match: {runtime: ""}, ` + limit), `quotas[0].match.runtime: expected a glob such as docker, got ""`},
		{"empty glob of namespace", one(`name: a, match: {namespace: ""}, ` + limit), `quotas[0].match.namespace: expected a glob such as prod-*, got ""`},
		{"empty glob of pod", one(`name: a, match: {pod: ""}, ` + limit), `quotas[0].match.pod: expected a glob such as web-*, got ""`},
		{"empty per", one(`name: a, per: "", ` + limit), `quotas[0].per: expected container, name, pod, namespace, all, or label:KEY with a key that names.labels has, got ""`},
		{"label not passed on", one("name: a, match: {labels: [{name: team, value: a}]}, " + limit), `quotas[0].match.labels[0].name: expected a label key that names.labels has, got "team"`},
		{"per", one("name: a, per: host, " + limit), `quotas[0].per: expected container, name, pod, namespace, all, or label:KEY with a key that names.labels has, got "host"`},
		{"per a label not passed on", one("name: a, per: 'label:team', " + limit), `quotas[0].per: expected container, name, pod, namespace, all, or label:KEY with a key that names.labels has, got "label:team"`},
		{"count", one("name: a, count: bytes, limit: 1GB, period: {every: day}"), `quotas[0].count: expected ` + wantCount + `, got "bytes"`},
		{"connections that are not counted", "accounting: {tcp: off}\n" + one("name: a, count: tcp_connects, limit: 100, period: {every: day}"), `quotas[0].count: expected ` + wantCount + `, got "tcp_connects" (accounting.tcp is off)`},
		{"attempts by /proc", "accounting: {source: proc, tcp: off}\n" + one("name: a, rate: {count: tcp_connect_attempts, above: 5/s}"), `quotas[0].rate.count: expected ` + wantCount + `, got "tcp_connect_attempts" (accounting.tcp is off)`},
		{"connections by /proc", "accounting: {source: proc}\n" + one("name: a, rate: {count: tcp_connect_failures, above: 5/s}"), `quotas[0].rate.count: expected ` + wantCount + `, got "tcp_connect_failures" (accounting.source is proc)`},
		{"requests that are not counted", one("name: a, count: receive_http_requests, limit: 100, period: {every: day}"), `quotas[0].count: expected ` + wantCount + `, got "receive_http_requests" (requests.http is off)`},
		{"requests without connections", "accounting: {tcp: off}\n" + one("name: a, rate: {count: transmit_http_requests, above: 5/s}"), `quotas[0].rate.count: expected ` + wantCount + `, got "transmit_http_requests" (accounting.tcp is off)`},
		{"requests by /proc", "accounting: {source: proc}\nrequests: {http: on}\n" + one("name: a, count: transmit_http_requests, limit: 100, period: {every: day}"), `quotas[0].count: expected ` + wantCount + `, got "transmit_http_requests" (accounting.source is proc)`},
		{"no unit", one("name: a, count: total_bytes, limit: 100, period: {every: day}"), `quotas[0].limit: expected an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections, got "100"`},
		{"unknown unit", one("name: a, count: total_bytes, limit: 100GB/s, period: {every: day}"), `quotas[0].limit: expected an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections, got "100GB/s"`},
		{"negative", one("name: a, count: total_packets, limit: -5, period: {every: day}"), `quotas[0].limit: expected an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections, got "-5"`},
		{"zero", one("name: a, count: total_packets, limit: 0, period: {every: day}"), `quotas[0].limit: expected an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections, got "0"`},
		{"list as a limit", one("name: a, count: total_packets, limit: [1], period: {every: day}"), `quotas[0].limit: expected an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections, got a list`},
		{"no period", one("name: a, count: total_bytes, limit: 1GB"), `quotas[0].period.every: expected hour, day, week, month or lifetime, got ""`},
		{"year", one("name: a, count: total_bytes, limit: 1GB, period: {every: year}"), `quotas[0].period.every: expected hour, day, week, month or lifetime, got "year"`},
		{"day 32", one("name: a, count: total_bytes, limit: 1GB, period: {every: month, day: 32}"), `quotas[0].period.day: expected a day from 1 to 31, of a month, got "32" (period.every is month)`},
		{"day 0", one("name: a, count: total_bytes, limit: 1GB, period: {every: month, day: 0}"), `quotas[0].period.day: expected a day from 1 to 31, of a month, got "0" (period.every is month)`},
		{"day of a week", one("name: a, count: total_bytes, limit: 1GB, period: {every: week, day: 2}"), `quotas[0].period.day: expected a day from 1 to 31, of a month, got "2" (period.every is week)`},
		{"time zone", one("name: a, count: total_bytes, limit: 1GB, period: {every: day, timezone: Berlin}"), `quotas[0].period.timezone: expected a time zone such as Europe/Berlin, of an hour, day, week or month, got "Berlin"`},
		{"rolling for too short", one("name: a, count: total_bytes, limit: 1GB, period: {rolling: 1m}"), `quotas[0].period.rolling: expected a duration such as 5m, 24h or 90d, at least 2m, and no other key of the period, got "1m"`},
		{"rolling months", one("name: a, count: total_bytes, limit: 1GB, period: {rolling: 1h, every: month}"), `quotas[0].period.rolling: expected a duration such as 5m, 24h or 90d, at least 2m, and no other key of the period, got "1h" (there are others)`},
		{"levels down", one("name: a, alert_at: [100, 50], " + limit), `quotas[0].alert_at: expected percentages from 1 to 1000, ascending, got "[100 50]"`},
		{"level as text", one("name: a, alert_at: ['50%'], " + limit), `quotas[0].alert_at: expected percentages from 1 to 1000, ascending, got a list`},
		{"no levels", one("name: a, alert_at: [], " + limit), `quotas[0].alert_at: expected percentages from 1 to 1000, ascending, got an empty list`},
		{"level twice", one("name: a, alert_at: [50, 50], " + limit), `quotas[0].alert_at: expected percentages from 1 to 1000, ascending, got "[50 50]"`},
		{"projection of a lifetime", one("name: a, projection: true, count: total_bytes, limit: 1GB, period: {every: lifetime}"), `quotas[0].projection: expected true or false, and true only for an hour, day, week or month, got "true" (the period is lifetime)`},
		{"projection as a word", one("name: a, projection: 'yes', " + limit), `quotas[0].projection: expected true or false, and true only for an hour, day, week or month, got "yes"`},
		{"initial", one("name: a, initial: 5, " + limit), `quotas[0].initial: expected an amount such as 20GiB of bytes, or 5M of packets, requests or connections, got "5"`},
		{"notifier", one("name: a, notify: [ops], " + limit), `quotas[0].notify[0]: expected the name of one of the notifiers, each only once, got "ops"`},
		{"limit and rate", one("name: a, limit: 1GB, rate: {count: total_bytes, above: 1MB/s}"), `quotas[0].limit: it belongs to a limit, and this quota has a rate`},
		{"rate without a second", one("name: a, rate: {count: total_bytes, above: 1MB}"), `quotas[0].rate.above: expected a rate above 0, such as 10Mbit/s or 1MB/s of bytes, or 200/s of packets, requests or connections, got "1MB"`},
		{"rate per minute", one("name: a, rate: {count: total_tcp_syn, above: 1/m}"), `quotas[0].rate.above: expected a rate above 0, such as 10Mbit/s or 1MB/s of bytes, or 200/s of packets, requests or connections, got "1/m"`},
		{"clear above above", one("name: a, rate: {count: total_bytes, above: 8Mbit/s, clear: 2MB/s}"), `quotas[0].rate.clear: expected a rate that is not higher than rate.above, got "2MB/s" (rate.above is 8Mbit/s)`},
		{"for", one("name: a, rate: {count: total_bytes, above: 8Mbit/s, for: -1s}"), `quotas[0].rate.for: expected a duration such as 5m, 24h or 90d, got "-1s"`},

		{"notifier without a kind", "notifiers: [{name: a}]", "notifiers[0]: expected one of alertmanager, webhook, exec and log, got 0 of them"},
		{"notifier of two kinds", "notifiers: [{name: a, log: {}, exec: {command: [/x]}}]", "notifiers[0]: expected one of alertmanager, webhook, exec and log, got 2 of them"},
		{"notifier twice", "notifiers: [{name: a, log: {}}, {name: a, log: {}}]", `notifiers[1].name: expected a name of letters, digits, dots, dashes and underscores, each only once, got "a"`},
		{"unknown kind", "notifiers: [{name: a, webhok: {url: x}}]", "notifiers[0].webhok: unknown key; did you mean notifiers[0].webhook?\nFILE: notifiers[0]: expected one of alertmanager, webhook, exec and log, got 0 of them"},
		{"url", "notifiers: [{name: a, alertmanager: {url: '127.0.0.1:9093'}}]", "notifiers[0].alertmanager.url: expected a URL such as http://127.0.0.1:9093"},
		{"no url", "notifiers: [{name: a, webhook: {}}]", `notifiers[0].webhook.url: expected a URL such as http://127.0.0.1:9093, got ""`},
		{"password", "notifiers: [{name: a, webhook: {url: 'http://u:geheim@x'}}]", `notifiers[0].webhook.url: expected a URL without a user; put it into http_config_file, got one of host "x"`},
		{"password and token", "notifiers: [{name: a, webhook: {url: 'http://u:geheim@x/geheim?token=geheim'}}]", `notifiers[0].webhook.url: expected a URL without a user; put it into http_config_file, got one of host "x"`},
		{"token without a scheme", "notifiers: [{name: a, webhook: {url: hooks.example/geheim}}]", "notifiers[0].webhook.url: expected a URL such as http://127.0.0.1:9093"},
		{"token with another scheme", "notifiers: [{name: a, webhook: {url: 'ftp://hooks.example/geheim'}}]", "notifiers[0].webhook.url: expected a URL such as http://127.0.0.1:9093"},
		{"token without a host", "notifiers: [{name: a, webhook: {url: 'https:/hooks.example/geheim'}}]", "notifiers[0].webhook.url: expected a URL such as http://127.0.0.1:9093"},
		{"token in the place of a section", "notifiers: [{name: a, webhook: 'https://hooks.example/geheim'}]", "notifiers[0].webhook: expected keys below it, got a URL"},
		{"API of an alertmanager", "notifiers: [{name: a, alertmanager: {url: 'http://x:9093/am/api/v2/alerts'}}]", "notifiers[0].alertmanager.url: expected the base URL such as http://127.0.0.1:9093, without /api/v2/alerts"},
		{"API of an alertmanager, with a slash", "notifiers: [{name: a, alertmanager: {url: 'http://x:9093/api/v2/'}}]", "notifiers[0].alertmanager.url: expected the base URL such as http://127.0.0.1:9093, without /api/v2/"},
		{"relative secret", "notifiers: [{name: a, webhook: {url: 'http://x', secret_file: x}}]", `notifiers[0].webhook.secret_file: expected an absolute path, got "x"`},
		{"empty secret", `notifiers: [{name: a, webhook: {url: "http://x", secret_file: ""}}]`, `notifiers[0].webhook.secret_file: expected an absolute path, got ""`},
		{"empty http_config_file", `notifiers: [{name: a, webhook: {url: "http://x", http_config_file: ""}}]`, `notifiers[0].webhook.http_config_file: expected an absolute path, got ""`},
		{"zero byte", `notifiers: [{name: a, exec: {command: [/x, "a\0b"]}}]`, `notifiers[0].exec.command: expected a program's absolute path, and its arguments, got "/x a\x00b"`},
		{"shell", "notifiers: [{name: a, exec: {command: [on-quota, -v]}}]", `notifiers[0].exec.command: expected a program's absolute path, and its arguments, got "on-quota -v"`},
		{"log with keys", "notifiers: [{name: a, log: {level: info}}]", "notifiers[0].log: expected {}, got keys below it\nFILE: notifiers[0]: expected one of alertmanager, webhook, exec and log, got 0 of them"},
		{"timeout", "notifiers: [{name: a, timeout: 1h, log: {}}]", `notifiers[0].timeout: expected a duration such as 5m, 24h or 90d, from 100ms to 5m, got "1h"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := write(t, test.text)
			_, err := Load(file, true, nil)
			if err == nil {
				t.Fatal("accepted")
			}
			// What is wrong first is told first; a key that was misread is then missing.
			got, want := strings.ReplaceAll(err.Error(), file, "FILE"), "FILE: "+test.want
			if !strings.HasPrefix(got+"\n", want+"\n") && !strings.HasPrefix(got, want+", got") {
				t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
			}
			if strings.Contains(got, "geheim") {
				t.Errorf("it repeats a secret: %s", got)
			}
		})
	}
}

// HTTP requests are counted in plain numbers.
func TestQuotaOfHTTPRequests(t *testing.T) {
	c := mustLoad(t, "requests: {http: on}\nquotas:\n- {name: in, count: receive_http_requests, limit: 5M, period: {every: day}}\n- {name: out, rate: {count: transmit_http_requests, above: 5k/s}}\n")
	if c.Quotas[0].Limit != 5_000_000 || c.Quotas[1].Rate.Above != 5000 {
		t.Errorf("%+v", c.Quotas)
	}
}
