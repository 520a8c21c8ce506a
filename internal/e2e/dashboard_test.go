// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// dashboard is the part of a Grafana dashboard that asks for data.
type dashboard struct {
	Panels     []panel
	Templating struct {
		List []struct {
			Name, Type string
			Definition string
		}
	}
}

type panel struct {
	ID      int
	Type    string
	Title   string
	Targets []struct{ Expr string }
	GridPos struct{ X, Y, W, H int }
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	must(t, json.Unmarshal(nettest.Must(os.ReadFile("../../configs/grafana/nettally.json"))(t), &d))
	return d
}

// queries returns what the dashboard asks, with its variables filled in, by what asks for it.
func (d *dashboard) queries(t *testing.T) map[string]string {
	t.Helper()
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$namespace", ".*", "$name", ".*")
	labelValues := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	all := map[string]string{}
	for _, p := range d.Panels {
		for i, target := range p.Targets {
			if strings.HasPrefix(target.Expr, "nettally_quota_projected_bytes{") {
				continue // there after a tenth of a period, which is an hour at least
			}
			all[fmt.Sprintf("panel %q, query %d", p.Title, i)] = variables.Replace(target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		parts := labelValues.FindStringSubmatch(variables.Replace(v.Definition))
		if parts == nil {
			t.Fatalf("variable %s: %s is not understood", v.Name, v.Definition)
		}
		all["variable "+v.Name] = fmt.Sprintf("count by (%s) (%s)", parts[2], parts[1])
	}
	return all
}

// hasData asks Prometheus, and expects a number.
func hasData(host *http.Client, promQL string) error {
	body, err := fetch(host, prometheusAddress, "/api/v1/query?query="+url.QueryEscape(promQL))
	if err != nil {
		return err
	}
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	for _, r := range answer.Data.Result {
		var number float64
		text, _ := r.Value[1].(string)
		if _, err := fmt.Sscan(text, &number); err == nil && !math.IsNaN(number) {
			return nil
		}
	}
	return errors.New("no data")
}

// Every query of the dashboard has data in a Prometheus that scrapes a host with traffic, a quota,
// a container on the host's network and requests.
func TestDashboard(t *testing.T) {
	t.Parallel()
	need.Commands(t, "prometheus", "curl")
	w := newWeb(t, "requests: {http: on}\nmetrics: {periods: {every: month, by: [namespace]}}\nquotas: [{name: transmitted, per: name, count: transmit_bytes, limit: 1MB, period: {every: hour}, alert_at: [50]}]")
	onHost := w.docker.Run("--name", "agent", "--network", "host", dockerhost.Image)
	w.nginx()
	startPrometheus(t, w.docker)
	host := client(w.docker.Namespace)
	agent, sink := w.docker.Agent(onHost), nettest.Must(nettest.Agent(t, w.docker.Namespace).Listen("udp", netip.MustParseAddr("127.0.0.1")))(t)
	all := readDashboard(t)
	queries := all.queries(t)
	if len(queries) < 40 {
		t.Errorf("the dashboard asks %d queries only", len(queries))
	}
	const uncounted = `panel "Not counted, and why", query 0`
	why := queries[uncounted]
	delete(queries, uncounted)
	w.d.poll("every query has data", func() error {
		w.in(w.client, "curl", "-sS", "-o", "/dev/null", "http://"+w.address+"/small")
		if err := agent.SendUDP(sink.Addr, 1, 100); err != nil {
			return err
		}
		var missing []error
		for what, promQL := range queries {
			if err := hasData(host, promQL); err != nil {
				missing = append(missing, fmt.Errorf("%s: %w: %s", what, err, promQL))
			}
		}
		return errors.Join(missing...)
	})
	w.d.configure("watch: {", fmt.Sprintf("watch: {exclude: [%q], ", onHost))
	w.d.poll("a container that is left out", func() error { return hasData(host, why) })
}

// The panels of the dashboard have numbers and places of their own.
func TestDashboardPlaces(t *testing.T) {
	d := readDashboard(t)
	ids, taken := map[int]string{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if other, there := ids[p.ID]; there {
			t.Errorf("%q and %q are both panel %d", p.Title, other, p.ID)
		}
		ids[p.ID] = p.Title
		if g := p.GridPos; g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("%q is at %+v", p.Title, g)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, there := taken[[2]int{x, y}]; there {
					t.Errorf("%q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}
