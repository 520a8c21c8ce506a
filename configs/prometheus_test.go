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
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
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
	rules, tests, metrics := read("prometheus/rules.yaml"), read("prometheus/rules_test.yaml"), read("../docs/METRICS.md")
	dashboard, runbooks := read("grafana/nettally.json"), read("../docs/OPERATIONS.md")
	for _, name := range regexp.MustCompile(`\b(?:nettally|promhttp)_[a-z_]+`).FindAllString(rules+dashboard, -1) {
		recorded := strings.Contains(rules, "record: name:"+name) || strings.Contains(rules, "record: instance:"+name)
		if !recorded && !strings.Contains(metrics, "`"+strings.TrimSuffix(name, "_bucket")+"`") {
			t.Errorf("docs/METRICS.md does not know %s", name)
		}
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
		if !strings.Contains(tests, alert[1]) {
			t.Errorf("alert %s is not tested", alert[1])
		}
		if !strings.Contains(rules, "docs/OPERATIONS.md#"+strings.ToLower(alert[1])+"\n") || !strings.Contains(runbooks, "\n### "+alert[1]+"\n") {
			t.Errorf("alert %s has no runbook", alert[1])
		}
	}
}
