// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// hostile is what a tenant may call something.
var hostile = []string{
	`<script>alert(1)</script>`,
	`<img src=x onerror=alert(1)>`,
	`"><svg onload=alert(1)>`,
	`javascript:alert(1)`,
	`{{constructor.constructor('alert(1)')()}}`,
	"a\x1b[31mb\x07\r\nc\x00d",
	"\u202egnp.exe\u2066\u200f",
	"עברית العربية",
	strings.Repeat("w", 200),
	strings.Repeat("\U0001F469\u200d", 60) + "\u0301\u0301\u0301",
	`x:12345678901234567890,"y":1}`,
	`'; DROP TABLE--`,
	`../../%2e%2e/%00?x#y&z=%`,
	"__proto__",
	"",
}

// Names and labels of others do nothing: no dialog, no request, no broken layout. Tabs fail
// their tests by what they hear.
func TestHostileNames(t *testing.T) {
	h := newHost(t)
	id := func(i int) string { return fmt.Sprintf("%064x", i+1) }
	for i, text := range hostile {
		h.add(id(i), text, func(c *usage.Container) {
			c.Image, c.Namespace, c.Pod, c.Cgroup, c.NetworkMode, c.Runtime = text, text, text, "/"+text, text, text
			c.Labels = map[string]string{text: text, "com.docker.compose.project": text}
			c.Interfaces[0].Name, c.Interfaces[0].HostInterface = text, text
			c.Interfaces[0].Shadowed, c.Reason = true, usage.Shadowed
			moved(c, uint64(i+1)<<30, 5)
		})
		h.quotas = append(h.quotas, quota.Status{Quota: text, Key: text, Name: text, Per: text, Unit: "bytes", Limit: 1, Ratio: 0.5, Levels: []quota.Level{{Name: text, Firing: true}}})
		h.alerts = append(h.alerts, quota.Alert{ID: text, Quota: text, Key: text, Level: text, State: "firing", Summary: text, StartsAt: h.began, Unit: text})
		h.foremost[id(i)] = quota.Foremost{Quota: text, Key: text, Ratio: 0.5}
	}
	h.distrust = hostile[1]
	h.rows = func(exporter.HistoryQuery) (rows []exporter.HistoryRow) {
		for i, text := range hostile {
			rows = append(rows, exporter.HistoryRow{Start: h.began, End: h.began, Key: text, Receive: exporter.HistoryCounts{Bytes: uint64(i + 1)}})
		}
		return rows
	}
	for _, size := range []struct {
		name string
		set  action
	}{{"desktop", sized(1280, 900, 1, false)}, {"phone", phone()}} {
		t.Run(size.name, func(t *testing.T) {
			b := open(t, h, "", size.set)
			h.second()
			b.wait(fmt.Sprintf(`document.querySelectorAll("tr[data-id]").length === %d`, len(hostile)))
			b.straight()
			views := []string{"#/now?group=project", "#/now?group=pod&cols=name,network,project,namespace,image", "#/history", "#/quotas", "#/health"}
			for i := range hostile {
				views = append(views, "#/container/"+id(i))
			}
			for _, view := range views {
				b.hash(view)
				b.wait(`document.querySelector("main").innerText.length > 20 && !document.body.innerText.includes("Reading the ledger")`)
				h.second()
				b.straight()
			}
			b.hash("#/now?filter=" + "%3Cscript%3E")
			b.wait(`document.querySelectorAll("tr[data-id]").length === 1`)
			if got := b.cell(id(0), "name"); !strings.HasPrefix(got, hostile[0]) {
				t.Errorf("the name is shown as %q, want it as it is", got)
			}
		})
	}
}

// straight fails the test if the layout is broken: the page is wider than the screen, a line of
// the table is not as high as it should be, or there is an element of a name's.
func (b *tab) straight() {
	b.t.Helper()
	wrong := eval[[]string](b, `(() => {
		const wrong = [];
		const wide = document.documentElement.scrollWidth;
		if (wide > document.documentElement.clientWidth) wrong.push("the page is " + wide + " wide, the screen " + document.documentElement.clientWidth + ": " +
			[...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth && !e.closest(".scroll")).map((e) => e.tagName + "." + e.className).slice(0, 3));
		for (const row of document.querySelectorAll("table.live tbody tr:not(.space):not(.empty)")) {
			const high = row.getBoundingClientRect().height;
			if (Math.abs(high - 32) > 1) wrong.push("a line is " + high + " high: " + row.innerText.slice(0, 60));
		}
		if (document.querySelector("main script, main img, main iframe, main [onerror], main [onload]")) wrong.push("an element of a name's");
		if (/[\u0000-\u0008\u000e-\u001f\u202a-\u202e\u2066-\u2069]/.test(document.body.innerText)) wrong.push("a character that turns or hides");
		return wrong;
	})()`)
	for _, w := range wrong {
		b.t.Errorf("%s: %s", eval[string](b, "location.hash.slice(0, 40) + ' ' + innerWidth"), w)
	}
}

//go:embed testdata/axe-core/axe.min.js
var axe string

// axe-core finds nothing serious in any view, in light and dark, on a screen and a phone.
func TestAccessible(t *testing.T) {
	h := example(t)
	for name, prepare := range map[string][]action{
		"light": {scheme("light"), sized(1280, 900, 1, false)},
		"dark":  {scheme("dark"), sized(1280, 900, 1, false)},
		"phone": {scheme("light"), phone()},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, h, "", prepare...)
			h.wave(1, 10)
			h.second()
			eval[string](b, axe+`; ""`)
			for _, view := range []string{"#/now", "#/now?group=project&ended=1", "#/history", "#/quotas", "#/health", "#/container/" + exampleID(2)} {
				b.hash(view)
				b.wait(`document.querySelector("h1") && !document.body.innerText.includes("Reading the ledger")`)
				h.second()
				eval[string](b, `new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(""))))`) // what measures itself has
				found := eval[json.RawMessage](b, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations
					.filter((v) => v.impact === "serious" || v.impact === "critical")
					.map((v) => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160) + " " + n.failureSummary).join(" | ")))`)
				var violations []string
				if err := json.Unmarshal(found, &violations); err != nil {
					t.Fatal(err)
				}
				for _, v := range violations {
					t.Errorf("%s: %s", view, v)
				}
			}
		})
	}
}
