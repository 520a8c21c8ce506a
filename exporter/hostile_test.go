// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nettally/nettally/internal/usage"
)

// hostile is a text as a tenant may choose it: it would end a label's value, a line and a
// string, and is not UTF-8.
const hostile = "a\"} 1\nnettally_forged{x=\"\\\x1b[31m\u202e\u2028\u009b\x00\xff</script>"

// spoil makes every text in a value hostile.
func spoil(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile)
	case reflect.Slice:
		for i := range v.Len() {
			spoil(v.Index(i))
		}
	case reflect.Map:
		if v.Type() == reflect.TypeFor[map[string]string]() && v.Len() > 0 {
			v.Set(reflect.ValueOf(map[string]string{hostile: hostile, "team": hostile, "\xfe": "\xfe"}))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				spoil(v.Field(i))
			}
		}
	}
}

// besieged serves what a host has, and beside it the same once more with every text spoiled.
func besieged(t *testing.T) *Exporter {
	t.Helper()
	bad, q := snapshot(), someQuotas()
	states := []usage.State{usage.Running, usage.Stopped}
	spoil(reflect.ValueOf(&bad).Elem())
	for i := range bad.Containers {
		bad.Containers[i].State = states[i%2]
	}
	badQuotas := someQuotas()
	spoil(reflect.ValueOf(&badQuotas.status).Elem())
	spoil(reflect.ValueOf(&badQuotas.alerts).Elem())
	q.status, q.alerts = append(badQuotas.status, q.status...), append(badQuotas.alerts, q.alerts...)

	snap := snapshot()
	snap.Containers = append(bad.Containers, snap.Containers...)
	snap.Unowned = append(bad.Unowned, snap.Unowned...)
	opts := options(snap)
	opts.Settings, opts.Quotas, opts.Distrust = everything, q, func() string { return hostile }
	opts.History = func(context.Context, HistoryQuery) ([]HistoryRow, error) {
		return []HistoryRow{{Start: noon, End: noon, Key: hostile}, {Start: noon, End: noon, Key: "web"}}, nil
	}
	return newExporter(t, opts)
}

// One hostile name must not fail the scrape of everything, nor change another's numbers.
func TestScrapeSurvivesHostileTexts(t *testing.T) {
	h := besieged(t).Handler()
	opts := withQuotas(options(snapshot()))
	opts.Settings = everything
	_, _, want := request(t, newExporter(t, opts).Handler(), "GET", "/metrics")
	for _, accept := range []string{"text/plain", "application/openmetrics-text; version=1.0.0"} {
		code, _, body := request(t, h, "GET", "/metrics", "Accept", accept)
		if code != 200 || strings.Contains(body, "\nnettally_forged") || accept != "text/plain" && !strings.HasSuffix(body, "# EOF\n") {
			t.Fatalf("%s: status %d:\n%s", accept, code, body)
		}
		if accept != "text/plain" {
			continue
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		if _, err := parser.TextToMetricFamilies(strings.NewReader(body)); err != nil {
			t.Errorf("parse: %v", err)
		}
		if diff := cmp.Diff(samplesOf(want, "aaa111"), samplesOf(body, "aaa111")); diff != "" {
			t.Errorf("a good container's samples (-alone +besieged):\n%s", diff)
		}
		if n := len(samplesOf(body, `container_id="a\"} 1\nnettally_forged`)); n == 0 {
			t.Error("the hostile container has no samples")
		}
	}
}

// samplesOf returns the lines that have a text.
func samplesOf(body, text string) (lines []string) {
	for line := range strings.Lines(body) {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

// JSON stays JSON, and has the values as exactly as it can: what is not UTF-8 is replaced.
func TestJSONSurvivesHostileTexts(t *testing.T) {
	h := besieged(t).Handler()
	for _, target := range []string{
		"/api/v1/containers?all=true", "/api/v1/containers/aaa111", "/api/v1/quotas", "/api/v1/alerts", "/api/v1/history",
	} {
		code, _, body := request(t, h, "GET", target)
		var answer map[string]any
		if err := json.Unmarshal([]byte(body), &answer); code != 200 || err != nil {
			t.Errorf("%s: status %d, error %v:\n%s", target, code, err, body)
		}
	}
	_, _, body := request(t, h, "GET", "/api/v1/containers")
	var got Containers
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if want := clean(hostile); got.Containers[0].ID != want || got.Containers[1].Labels["team"] != want || got.Containers[1].Labels[want] != want {
		t.Errorf("got %+v", got.Containers[:2])
	}
}
