// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// historyRun is two containers of known traffic, and the nettally that keeps their history.
type historyRun struct {
	*pair
	t *testing.T
}

// The history has what `list` has, to the packet: as a table, JSON and CSV, from the
// command line and over TCP, by whatever it is summed up and filtered.
func TestHistory(t *testing.T) {
	t.Parallel()
	need.Root(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	more := strings.Replace(onlyDocker(docker), "names: {", "names: {labels: [team], ", 1)
	d := startListening(t, docker, metricsAddress, more)
	h := &historyRun{t: t, pair: &pair{docker: docker, daemon: d}}
	docker.NetworkCreate("plain", "--subnet", "10.233.0.0/24")
	h.server = docker.Run("--name", "web-server", "--label", "team=red", "--network", "plain", dockerhost.Image)
	h.client = docker.Run("--name", "web-client", "--label", "team=blue", "--network", "plain", dockerhost.Image)
	h.traffic()
	// From now on nothing is counted any more.
	docker.CLI("stop", "--time", "0", h.server, h.client)
	d.poll("stopped", func() error {
		for _, id := range []string{h.server, h.client} {
			if c, err := d.container(id); err != nil || c.State != "stopped" {
				return fmt.Errorf("container %s is %s, %v", c.Name, c.State, err)
			}
		}
		return nil
	})
	// Written at the latest when nettally ends.
	d.stop()
	d.start()
	h.await()

	t.Run("forms", h.forms)
	t.Run("keys and steps", h.keys)
	t.Run("filters", h.filters)
	t.Run("over TCP", h.overTCP)
	t.Run("wrong use", h.wrong)
	t.Run("metrics of the ledger", h.metrics)
}

// traffic sends UDP, and connects, both of known numbers.
func (h *historyRun) traffic() {
	h.t.Helper()
	h.daemon.counted(h.server, 1)
	h.daemon.counted(h.client, 1)
	l := &life{t: h.t, docker: h.docker, d: h.daemon, sent: map[string]uint64{}}
	l.exchange(h.client, h.server, "eth0", 300)
	l.exchange(h.server, h.client, "eth0", 200)
	sink := nettest.Must(h.docker.Agent(h.server).Listen("tcp", h.docker.IPv4(h.server, "eth0")))(h.t)
	h.connect(h.t, h.docker.Agent(h.client), sink.Addr, testnet.Connects{Connected: 11})
}

// await waits until the history has all of it.
func (h *historyRun) await() {
	h.t.Helper()
	h.daemon.poll("what was counted is in the history", func() error {
		want, got := h.listed("name"), sums(h.ask("--step", "hour").History)
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("(-list +history):\n%s", diff)
		}
		return nil
	})
	if syn := h.listed("name")["web-server"][0].TCPSYN; syn != 11 {
		h.t.Errorf("the server got %d connection requests, want 11", syn)
	}
}

// listed returns what `list` has of both containers, without what was seeded.
func (h *historyRun) listed(by string) usages {
	h.t.Helper()
	all := usages{}
	for _, c := range h.daemon.list().Containers {
		key := map[string]string{
			"name": c.Name, "container": c.ID, "namespace": c.Namespace, "label:team": c.Labels["team"],
		}[by]
		all[key] = plus(all[key], usageOf(c))
	}
	return all
}

// sums adds up the periods.
func sums(rows []exporter.HistoryRow) usages {
	all := usages{}
	for _, row := range rows {
		all[row.Key] = plus(all[row.Key], [2]exporter.HistoryCounts{row.Receive, row.Transmit})
	}
	return all
}

// ask runs `nettally history` for JSON.
func (h *historyRun) ask(args ...string) *exporter.History {
	h.t.Helper()
	out, err := h.daemon.run(append([]string{"history", "-o", "json"}, args...)...)
	if err != nil {
		h.t.Fatalf("history %q: %v: %s", args, err, out)
	}
	var found exporter.History
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		h.t.Fatal(err)
	}
	return &found
}

func (h *historyRun) forms(t *testing.T) {
	want := h.ask("--step", "month").History
	rows := nettest.Must(csv.NewReader(strings.NewReader(
		nettest.Must(h.daemon.run("history", "--step", "month", "-o", "csv"))(t))).ReadAll())(t)
	lines := [][]string{{"start", "end", "key", "receive_bytes", "receive_packets", "receive_tcp_syn",
		"transmit_bytes", "transmit_packets", "transmit_tcp_syn",
		"tcp_connect_attempts", "tcp_connects", "tcp_accepts", "tcp_connect_failures",
		"receive_http_requests", "transmit_http_requests"}}
	for _, row := range want {
		line := []string{row.Start.Format(time.RFC3339), row.End.Format(time.RFC3339), row.Key}
		for _, n := range []exporter.HistoryCounts{row.Receive, row.Transmit} {
			for _, number := range []uint64{n.Bytes, n.Packets, n.TCPSYN} {
				line = append(line, strconv.FormatUint(number, 10))
			}
		}
		if row.TCP == nil {
			t.Fatalf("no connections are known of %q", row.Key)
		}
		for _, number := range []uint64{row.TCP.ConnectAttempts, *row.TCP.Connects, row.TCP.Accepts, *row.TCP.ConnectFailures} {
			line = append(line, strconv.FormatUint(number, 10))
		}
		lines = append(lines, append(line, "", "")) // HTTP is not counted
	}
	if diff := cmp.Diff(lines, rows); diff != "" {
		t.Errorf("CSV (-JSON +CSV):\n%s", diff)
	}

	table := strings.Split(strings.TrimSpace(nettest.Must(h.daemon.run("history", "--step", "month"))(t)), "\n")
	estimates := slices.DeleteFunc(slices.Clone(table), func(line string) bool { return !strings.HasPrefix(line, "estimated ") })
	table = table[:len(table)-len(estimates)] // they are the last: of each key in the running month
	if len(table) != len(want)+1 || strings.Fields(table[0])[1] != "NAME" || len(estimates) > len(want) {
		t.Fatalf("table of %d lines and %d that are estimated, want a heading and %d:\n%s", len(table), len(estimates), len(want), strings.Join(table, "\n"))
	}
	for i, row := range want {
		fields := strings.Fields(table[i+1])
		if fields[0] != row.Start.Format("2006-01") || fields[1] != row.Key ||
			fields[3] != strconv.FormatUint(row.Receive.TCPSYN, 10) || fields[5] != strconv.FormatUint(row.Transmit.TCPSYN, 10) {
			t.Errorf("line %q, want %+v", table[i+1], row)
		}
	}
}

func (h *historyRun) keys(t *testing.T) {
	for _, by := range []string{"name", "container", "namespace", "label:team"} {
		want := h.listed(by)
		for _, step := range []string{"hour", "day", "week", "month"} {
			found := h.ask("--by", by, "--step", step)
			if diff := cmp.Diff(want, sums(found.History)); diff != "" {
				t.Errorf("by %s, step %s (-list +history):\n%s", by, step, diff)
			}
			for _, row := range found.History {
				h.checkPeriod(t, step, row)
			}
		}
	}
}

// checkPeriod expects the calendar's period around now, or the one before if that has
// just ended.
func (h *historyRun) checkPeriod(t *testing.T, step string, row exporter.HistoryRow) {
	t.Helper()
	y, m, day := row.Start.Date()
	start, end := map[string]time.Time{
		"hour":  time.Date(y, m, day, row.Start.Hour(), 0, 0, 0, row.Start.Location()),
		"day":   time.Date(y, m, day, 0, 0, 0, 0, row.Start.Location()),
		"week":  time.Date(y, m, day-(int(row.Start.Weekday())+6)%7, 0, 0, 0, 0, row.Start.Location()),
		"month": time.Date(y, m, 1, 0, 0, 0, 0, row.Start.Location()),
	}[step], map[string]time.Time{
		"hour":  row.Start.Add(time.Hour),
		"day":   row.Start.AddDate(0, 0, 1),
		"week":  row.Start.AddDate(0, 0, 7),
		"month": row.Start.AddDate(0, 1, 0),
	}[step]
	now := time.Now()
	if !row.Start.Equal(start) || !row.End.Equal(end) || now.Before(row.Start) || now.Sub(row.End) > time.Hour {
		t.Errorf("%s from %s to %s, now it is %s", step, row.Start, row.End, now)
	}
}

func (h *historyRun) filters(t *testing.T) {
	all := h.listed("name")
	both, server, none := []string{"web-client", "web-server"}, []string{"web-server"}, []string{}
	tomorrow := time.Now().AddDate(0, 0, 2).Format(time.DateOnly)
	for _, test := range []struct {
		args []string
		keys []string
	}{
		{[]string{"--name", "web-*"}, both},
		{[]string{"--name", "web-[r-t]*"}, server},
		{[]string{"--name", "web"}, none},
		{[]string{"--container", h.server}, server},
		{[]string{"--container", h.server[:12]}, server},
		{[]string{"--namespace", "default"}, none},
		{[]string{"--label", "team"}, both},
		{[]string{"--label", "team=red"}, server},
		{[]string{"--label", "team=green"}, none},
		{[]string{"--from", "2020-01-01", "--to", tomorrow}, both},
		{[]string{"--since", "1h"}, both},
		{[]string{"--since", "2020-01", "--step", "week", "--name", "*server"}, server},
		{[]string{"--from", "2020-01-01", "--to", "2020-03-01T12:00:00Z"}, none},
		{[]string{"--from", "1577836800", "--step", "month", "--name", "*server"}, server},
	} {
		want := usages{}
		for _, key := range test.keys {
			want[key] = all[key]
		}
		if diff := cmp.Diff(want, sums(h.ask(test.args...).History)); diff != "" {
			t.Errorf("%q (-list +history):\n%s", test.args, diff)
		}
	}
	out := nettest.Must(h.daemon.run("history", "--name", "nobody"))(t)
	if !strings.HasPrefix(out, "no usage from ") {
		t.Errorf("of nobody: %q", out)
	}
}

func (h *historyRun) overTCP(t *testing.T) {
	host := client(h.docker.Namespace)
	query := "/api/v1/history?" + url.Values{"by": {"label:team"}, "step": {"hour"}}.Encode()
	var found exporter.History
	if err := json.Unmarshal([]byte(nettest.Must(fetch(host, metricsAddress, query))(t)), &found); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h.listed("label:team"), sums(found.History)); diff != "" {
		t.Errorf("JSON (-list +history):\n%s", diff)
	}
	text := nettest.Must(fetch(host, metricsAddress, query+"&format=csv"))(t)
	if want := nettest.Must(h.daemon.run("history", "--by", "label:team", "--step", "hour", "-o", "csv"))(t); text != want {
		t.Errorf("CSV over TCP:\n%sfrom the command:\n%s", text, want)
	}
	_, err := fetch(host, metricsAddress, "/api/v1/history?step=year")
	if want := `query parameter step: \"year\" is neither hour nor day nor week nor month`; err == nil ||
		!strings.HasPrefix(err.Error(), "400 ") || !strings.Contains(err.Error(), want) {
		t.Errorf("step=year: %v, want 400 and %s", err, want)
	}
}

func (h *historyRun) wrong(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-o", "xml"}, 2, `wrong use: --output: expected table, json or csv, got "xml"`},
		{[]string{"--step", "year"}, 2, `wrong use: --step: "year" is neither hour nor day nor week nor month`},
		{[]string{"--since", "x"}, 2, `wrong use: --since: "x" is neither how long ago, such as 90m`},
		{[]string{"--by", "image"}, 2, `wrong use: --by: "image" is neither name nor container nor pod nor namespace nor label:KEY`},
		{[]string{"--by", "label:"}, 2, `wrong use: --by: "label:" is neither`},
		{[]string{"--from", "yesterday"}, 2, `wrong use: --from: "yesterday" is neither a date such as`},
		{[]string{"--from", "2026-02-01", "--to", "2026-01-01"}, 2, "wrong use: --from: "},
		{[]string{"--name", "web-["}, 2, `wrong use: --name: "web-[" is not a glob`},
		{[]string{"--label", "=red"}, 2, `wrong use: --label: "=red" is neither KEY=VALUE nor KEY`},
		{[]string{"--frob"}, 2, "wrong use: unknown flag: --frob"},
		{[]string{"now"}, 2, "wrong use: unknown command"},
		{[]string{"--container", ""}, 0, ""},
	} {
		out, err := h.daemon.run(append([]string{"history"}, test.args...)...)
		if code := exitCode(err); code != test.code || !strings.Contains(out, test.says) || code != 0 && strings.Count(out, "\n") != 1 {
			t.Errorf("%q: exit code %d, printed:\n%swant %d and one line that says: %s", test.args, code, out, test.code, test.says)
		}
	}
}

func (h *historyRun) metrics(t *testing.T) {
	found := nettest.Must(parse(nettest.Must(h.daemon.get("/metrics"))(t)))(t)
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range found {
			if strings.HasPrefix(name, "nettally_ledger_") && !yield(name) {
				return
			}
		}
	})
	want := []string{
		"nettally_ledger_clock_set_back", "nettally_ledger_damaged_total", "nettally_ledger_flush_failures_total",
		"nettally_ledger_last_flush_timestamp_seconds", "nettally_ledger_up",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	flushed := time.Unix(int64(found["nettally_ledger_last_flush_timestamp_seconds"]), 0)
	if found["nettally_ledger_up"] != 1 || found["nettally_ledger_flush_failures_total"] != 0 || time.Since(flushed) > patience {
		t.Errorf("up %v, failures %v, last flush %s", found["nettally_ledger_up"],
			found["nettally_ledger_flush_failures_total"], flushed)
	}
}
