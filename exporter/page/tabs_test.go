// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/nettally/nettally/internal/usage"
)

// Eight tabs are as live as one, and one stream feeds all of them: a browser has six
// connections to a host.
func TestEightTabsShareAStream(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	tabs := []*tab{open(t, h, "")}
	for range 7 {
		tabs = append(tabs, tabs[0].beside(""))
	}
	for range 2 {
		h.pass("aaa111", 2048, 0)
		h.second()
	}
	for i, b := range tabs {
		b.wait(cellOf("aaa111", "rx") + ` === "2.00 KiB/s"`)
		if got := b.cell("aaa111", "rxtotal"); got != "4.00 KiB" {
			t.Errorf("tab %d: received %s, want 4.00 KiB", i, got)
		}
	}
	if most, begun := h.most.Load(), h.begun.Load(); most != 1 || begun != 1 {
		t.Errorf("%d streams, %d at once: want one", begun, most)
	}
}

// A browser without shared workers has a stream for each tab that is looked at.
func TestWithoutSharedWorkers(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	b := open(t, h, "", call(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: "delete window.SharedWorker"}))
	if kind := eval[string](b, "typeof SharedWorker"); kind != "undefined" {
		t.Fatalf("SharedWorker is a %s", kind)
	}
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)
	h.pass("aaa111", 2048, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "2.00 KiB/s"`)

	h.kill()
	b.wait(`document.querySelector(".banner").innerText.includes("Waiting for nettally")`)
	h.pass("aaa111", 20*1024, 0)
	h.gap(20 * time.Second)
	h.start()
	b.wait(cellOf("aaa111", "rx") + ` === "1.00 KiB/s"`)

	defer b.hide()()
	until(func() bool { return h.streams.Load() == 0 })
}

// Nobody looks at a tab behind another one: then there is no stream. It goes on where it was.
func TestNoStreamWhileNobodyLooks(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	b := open(t, h, "")
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)

	show := b.hide()
	defer show()
	until(func() bool { return h.streams.Load() == 0 })

	h.pass("aaa111", 600_000, 0)
	h.gap(10 * time.Minute)
	show()
	b.wait(`document.visibilityState === "visible"`)
	b.wait(cellOf("aaa111", "rx") + ` === "0.98 KiB/s"`)
	if got := b.cell("aaa111", "rxtotal"); got != "586 KiB" {
		t.Errorf("received %s, want 586 KiB", got)
	}
}

// A daemon that was killed and comes back: the page says that it waits, and goes on by itself.
// What passed meanwhile is a rate over the whole gap.
func TestReconnectWithoutASpike(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	h.pass("aaa111", 50<<30, 0)
	b := open(t, h, "")
	for range 3 {
		h.pass("aaa111", 2048, 0)
		h.second()
	}
	b.wait(cellOf("aaa111", "rx") + ` === "2.00 KiB/s"`)
	// From here on the page takes down every rate that it shows.
	eval[string](b, `(() => {
		window.seen = new Set();
		new MutationObserver(() => seen.add(`+cellOf("aaa111", "rx")+`)).observe(document.body, {subtree: true, childList: true, characterData: true});
		return "";
	})()`)
	h.kill()
	b.wait(`document.querySelector(".banner").innerText.includes("Waiting for nettally")`)
	b.wait(`document.querySelector(".pulse").innerText.includes("waiting")`)
	h.pass("aaa111", 20*1024, 0)
	h.gap(19 * time.Second)
	h.second() // nobody hears it
	h.start()
	b.wait(`document.querySelector(".pulse.on")`)
	b.wait(cellOf("aaa111", "rx") + ` === "1.00 KiB/s"`)
	b.wait(`document.querySelector(".banner").innerText === ""`)
	h.pass("aaa111", 3*1024, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "3.00 KiB/s"`)
	for _, rate := range eval[[]string](b, `[...seen]`) {
		if !strings.Contains("2.00 KiB/s 1.00 KiB/s 3.00 KiB/s", rate) {
			t.Errorf("the page showed a rate of %q", rate)
		}
	}
}

// No rate where the numbers are of something else than before.
func TestNoRateAcrossAChange(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	b := open(t, h, "")
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)
	// It is found on the host's network, and counted by its cgroup from now on.
	h.change("aaa111", func(c *usage.Container) {
		c.OnHost, c.NetworkMode, c.IP = true, "host", &usage.Traffic{}
		moved(c, 7<<30, 0)
	})
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "–"`)
	h.pass("aaa111", 1024, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "1.00 KiB/s"`)
	if got := b.cell("aaa111", "state"); got != "by IP" {
		t.Errorf("state %q, want by IP", got)
	}
	// What is seeded passed at no time that is known.
	h.change("aaa111", func(c *usage.Container) { c.IP.Receive.Seeded.Bytes += 1 << 40 })
	h.pass("aaa111", 2048, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "2.00 KiB/s"`)
}

// Behind a proxy the page has a path, which it need not know.
func TestUnderAPathOfAProxy(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	h.gap(time.Second)
	to, err := url.Parse(h.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewServer(http.StripPrefix("/net/tally", &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) {}, // a stream that ends with its tab
	}))
	defer proxy.Close()
	ctx, cancel := chromedp.NewContext(browser(t).ctx, chromedp.WithNewBrowserContext())
	defer cancel()
	b := load(t, ctx, proxy.URL+"/net/tally/", "")
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)
	for _, view := range []string{"container/aaa111", "history", "quotas", "health"} {
		b.hash("#/" + view)
		b.wait(`document.querySelector(".source a")`)
	}
	b.wait(`document.body.innerText.includes("1.2.3")`)
}

// hide opens a tab in front of another one, and returns the function that closes it.
func (b *tab) hide() (show func()) {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, chromedp.WithNewWindow(false))
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		cancel()
		b.t.Fatal(err)
	}
	b.wait(`document.visibilityState === "hidden"`)
	return cancel
}

// until waits for a condition of the test itself.
func until(condition func() bool) {
	for !condition() {
		time.Sleep(5 * time.Millisecond)
	}
}
