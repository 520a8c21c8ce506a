// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

// promtool reads the rules, and tries what they do.
func TestPrometheusRules(t *testing.T) {
	need.Commands(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", "rules.yaml", "fleet-rules.yaml"},
		{"test", "rules", "rules_test.yaml", "fleet-rules_test.yaml"},
	} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The rules ask for metrics that there are, and each alert is tested.
func TestPrometheusRulesAreOfOurMetrics(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		must(t, err)
		return string(text)
	}
	rules := read("prometheus/rules.yaml") + read("prometheus/fleet-rules.yaml")
	tests, metrics := read("prometheus/rules_test.yaml")+read("prometheus/fleet-rules_test.yaml"), read("../docs/METRICS.md")
	asked := rules + read("grafana/nettally.json")
	for _, name := range regexp.MustCompile(`\b(?:nettally|promhttp)_[a-z_]+`).FindAllString(asked, -1) {
		recorded := regexp.MustCompile(`record: (?:[a-z]+:)?` + name + `\b`).MatchString(rules)
		if !recorded && !strings.Contains(metrics, "`"+strings.TrimSuffix(name, "_bucket")+"`") {
			t.Errorf("docs/METRICS.md does not know %s", name)
		}
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
		if !strings.Contains(tests, alert[1]) {
			t.Errorf("alert %s is not tested", alert[1])
		}
	}
}

// Each alert has a runbook link, which leads to a heading.
func TestRunbooks(t *testing.T) {
	for _, name := range []string{"rules.yaml", "fleet-rules.yaml"} {
		rules, err := os.ReadFile("prometheus/" + name)
		must(t, err)
		links := regexp.MustCompile(`runbook_url: "?https://\S+/docs/(\w+\.md)#([\w-]+)`).FindAllStringSubmatch(string(rules), -1)
		if alerts := strings.Count(string(rules), "- alert: "); len(links) != alerts || alerts == 0 {
			t.Errorf("%s: %d alerts have %d links", name, alerts, len(links))
		}
		for _, link := range links {
			doc, err := os.ReadFile("../docs/" + link[1])
			must(t, err)
			found := false
			for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(doc), -1) {
				found = found || strings.ToLower(strings.ReplaceAll(heading[1], " ", "-")) == link[2]
			}
			if !found {
				t.Errorf("docs/%s has no heading #%s", link[1], link[2])
			}
		}
	}
}
