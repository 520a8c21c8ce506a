// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
)

// BenchmarkPage is what the page costs a browser with 1,000 containers that all move something: the
// times from a reading to its picture and of a sort, a filter and a group, and the CPU time of a
// tick on the main thread.
func BenchmarkPage(b *testing.B) {
	var said strings.Builder
	h := newHost(b)
	h.thousand(1000)
	tab := open(b, h, "#/now")
	tab.run(call(performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks}))
	tick := func() { h.busy(); h.second() }
	for range 30 {
		tick()
	}
	tab.wait(`document.querySelectorAll("tr[data-id]").length > 10`)

	// From the reading of the counters to the frame that has it.
	var delays []float64
	for range 15 {
		eval[string](tab, `(window.shown = new Promise((done) => { const old = document.querySelector(".pulse time").innerText;
			const o = new MutationObserver(() => { if (document.querySelector(".pulse time").innerText !== old) { o.disconnect(); requestAnimationFrame(() => setTimeout(() => done(Date.now()))); } });
			o.observe(document.querySelector(".pulse"), {subtree: true, childList: true, characterData: true}); }), "")`)
		h.busy()
		begun := time.Now()
		h.second()
		delays = append(delays, eval[float64](tab, "window.shown")-float64(begun.UnixMicro())/1000)
	}
	fmt.Fprintf(&said, "from the reading to the picture: %s\n", spread(delays))

	for name, do := range map[string]string{
		"sort":   `[...document.querySelectorAll("thead button")][TURN % 5].click()`,
		"filter": `(location.hash = "#/now?filter=app-0" + TURN % 10)`,
		"group":  `(location.hash = "#/now?group=" + (TURN % 2 ? "project" : "namespace"))`,
	} {
		var took []float64
		for i := range 12 {
			took = append(took, eval[float64](tab, `new Promise((done) => { const TURN = `+fmt.Sprint(i)+`; const begun = performance.now(); `+do+
				`; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)))); })`))
		}
		fmt.Fprintf(&said, "%s, to the frame after the one that has it: %s\n", name, spread(took))
	}

	tab.hash("#/now")
	before := measured(tab)
	const ticks = 30
	for range ticks {
		tick()
		time.Sleep(100 * time.Millisecond) // each gets a frame of its own
	}
	after := measured(tab)
	for _, name := range []string{"TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration"} {
		fmt.Fprintf(&said, "a tick on the main thread, %s: %.1f ms\n", name, (after[name]-before[name])*1000/ticks)
	}
	fmt.Fprintf(&said, "heap of JavaScript: %.1f MB\n", after["JSHeapUsedSize"]/1e6)
	b.Log(said.String())
}

func measured(b *tab) map[string]float64 {
	b.t.Helper()
	all := map[string]float64{}
	b.run(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		got, err := cdp.Call(ctx, t, performance.GetMetrics, cdp.Empty{})
		for _, m := range got.Metrics {
			all[m.Name] = m.Value
		}
		return err
	}))
	return all
}

func spread(ms []float64) string {
	slices.Sort(ms)
	return fmt.Sprintf("median %.0f ms, worst %.0f ms of %d", ms[len(ms)/2], ms[len(ms)-1], len(ms))
}
