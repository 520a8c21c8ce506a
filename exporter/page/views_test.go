// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

func TestTheTableIsInTheAddress(t *testing.T) {
	h := example(t)
	b := open(t, h, "#/now?sort=name&filter=shop-*&cols=name,rx,image&unit=bits")
	b.wait(`document.querySelectorAll("tr[data-id]").length === 4`)
	if got, want := b.ids(), []string{exampleID(1), exampleID(3), exampleID(2), exampleID(0)}; !slices.Equal(got, want) {
		t.Errorf("by name: %q, want %q", got, want)
	}
	if got := eval[int](b, `document.querySelectorAll("thead th").length`); got != 3 {
		t.Errorf("%d columns, want 3", got)
	}
	if got := b.text("#host-receive"); !strings.HasSuffix(got, "bit/s") && got != "–" {
		t.Errorf("the host receives %q, want bits", got)
	}

	// What is set in the page comes into the address.
	eval[string](b, `(document.querySelector("th.k-rx button").click(), "")`)
	b.wait(`!location.hash.includes("sort=")`)
	b.wait(`document.querySelector("th.k-rx").getAttribute("aria-sort") === "descending"`)
	eval[string](b, `(document.querySelector("th.k-rx button").click(), "")`)
	b.wait(`location.hash.includes("reverse=1") && document.querySelector("th.k-rx").getAttribute("aria-sort") === "ascending"`)

	// Groups have sums, each container once, and close.
	b.hash("#/now?group=project&sort=rxtotal&unit=si")
	b.wait(`document.querySelectorAll("tr.group").length === 5`)
	var sum uint64
	for _, c := range h.snapshot().Containers {
		if strings.HasPrefix(c.Name, "shop-") {
			sum += c.Receive.Wire().Bytes
		}
	}
	want := fmt.Sprintf("%d GB", (sum+500_000_000)/1_000_000_000)
	b.wait(`[...document.querySelectorAll("tr.group")].some((r) => r.innerText.includes("shop") && r.querySelector(".k-rxtotal").innerText === "` + want + `")`)
	eval[string](b, `([...document.querySelectorAll("tr.group button")].find((x) => x.innerText.includes("shop")).click(), "")`)
	b.wait(`!document.querySelector('tr[data-id="` + exampleID(0) + `"]') && location.hash.includes("closed=shop")`)
}

// All can be done by keys: / goes to the filter, and a name is a link to its container.
func TestKeyboard(t *testing.T) {
	h := example(t)
	b := open(t, h, "")
	b.wait(`document.querySelectorAll("tr[data-id]").length === 14`)
	// chromedp would send the text of the key apart, which no browser does after a key is taken.
	b.run(call(input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: "rawKeyDown", Key: "/"}), call(input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: "keyUp", Key: "/"}))
	b.wait(`document.activeElement.id === "filter"`)
	b.run(chromedp.KeyEvent("vpn"))
	b.wait(`document.querySelectorAll("tr[data-id]").length === 1`)
	if got := eval[string](b, `location.hash`); got != "#/now?filter=vpn" {
		t.Errorf("the address is %q", got)
	}
	for !eval[bool](b, `document.activeElement.classList.contains("name")`+` && document.activeElement.closest("tr") !== null`) {
		b.run(chromedp.KeyEvent(kb.Tab))
	}
	b.run(chromedp.KeyEvent(kb.Enter))
	b.wait(`document.querySelector("h1").innerText === "vpn"`)
}

// A brush over the plot shows that time alone, until it is told to show all.
func TestBrush(t *testing.T) {
	h := example(t)
	b := open(t, h, "")
	b.wait(`document.querySelector(".u-over")`)
	box := eval[[]float64](b, `(() => { const r = document.querySelector(".u-over").getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()`)
	x, y := box[0]+box[2]/3, box[1]+box[3]/2
	mouse := func(kind input.DispatchMouseEventType, x float64) {
		button := input.MouseButtonLeft
		b.run(call(input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: kind, X: x, Y: y, Button: button, ClickCount: 1}))
	}
	mouse("mousePressed", x)
	mouse("mouseMoved", x+40)
	mouse("mouseMoved", x+150)
	mouse("mouseReleased", x+150)
	b.wait(`[...document.querySelectorAll(".plot button")].some((x) => x.innerText === "Show all")`)
	h.second()
	eval[string](b, `(document.querySelector(".plot button").click(), "")`)
	b.wait(`!document.querySelector(".plot button")`)
}

// The plot is full when it is opened: its first value is there without a sample.
func TestThePlotIsFilled(t *testing.T) {
	h := example(t)
	b := open(t, h, "")
	b.wait(`[...document.querySelectorAll(".legend .name")].some((x) => x.innerText === "shop-web-1")`)
	if n := eval[int](b, `document.querySelectorAll(".legend li").length`); n != 9 {
		t.Errorf("the legend has %d lines, want 8 containers and the others", n)
	}
}

func TestHistory(t *testing.T) {
	h := example(t)
	b := open(t, h, "#/history?unit=si")
	b.wait(`document.querySelectorAll(".used").length === 2`)
	rows := h.rows(exporter.HistoryQuery{Step: "day", By: "name"})
	var all, web uint64
	for _, r := range rows {
		all += r.Receive.Bytes + r.Transmit.Bytes
		if r.Key == "shop-web-1" {
			web += r.Receive.Bytes + r.Transmit.Bytes
		}
	}
	exact := func(selector string) string {
		return eval[string](b, fmt.Sprintf(`document.querySelector(%q).title`, selector))
	}
	if got := exact(".two section:first-child tfoot td:nth-child(4)"); got != fmt.Sprint(all) {
		t.Errorf("in all %s, want %d", got, all)
	}
	if got := eval[int](b, `document.querySelectorAll(".two section:first-child tbody tr").length`); got != 24 {
		t.Errorf("%d days, want 24", got)
	}
	// One key alone.
	eval[string](b, `([...document.querySelectorAll(".used button.text")].find((x) => x.innerText === "shop-web-1").click(), "")`)
	b.wait(`document.querySelector(".two h2").innerText.includes("shop-web-1")`)
	if got := exact(".two section:first-child tfoot td:nth-child(4)"); got != fmt.Sprint(web) {
		t.Errorf("of shop-web-1 %s, want %d", got, web)
	}
	// The CSV is that of what is shown.
	b.hash("#/history?step=hour&by=container&name=web-*&from=2026-11-01")
	b.wait(`document.querySelector("a.button").href.endsWith("/api/v1/history?step=hour&by=container&from=2026-11-01&name=web-*&format=csv")`)
	response, err := http.Get(eval[string](b, `document.querySelector("a.button").href`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if csv, err := io.ReadAll(response.Body); err != nil || !strings.HasPrefix(string(csv), "start,end,key,receive_bytes") {
		t.Errorf("the CSV is %.100q, %v", csv, err)
	}
	// What the API refuses is said in its words.
	b.hash("#/history?step=day&from=soon")
	b.wait(`document.querySelector(".problem").innerText.includes("is neither a date")`)
}

func TestQuotasAndAlerts(t *testing.T) {
	h := example(t)
	b := open(t, h, "#/quotas")
	b.wait(`document.querySelectorAll(".quotalist tbody tr").length === 4`)
	first := eval[string](b, `document.querySelector(".quotalist tbody tr").innerText`)
	for _, want := range []string{"monthly", "backup", "104 GiB", "100 GiB", "104 %", "146 GiB"} {
		if !strings.Contains(first, want) {
			t.Errorf("the quota that is used most is shown as %q, without %q", first, want)
		}
	}
	b.wait(`document.querySelector(".quotas").innerText.includes("monthly: backup has used 104 % of 100GiB")`)
	b.wait(`document.querySelector(".badge").innerText.startsWith("2")`)
	// What changes comes by itself.
	h.mu.Lock()
	h.quotas[3].Used, h.quotas[3].Ratio = h.quotas[3].Limit*1.5, 1.5
	h.distrust = "it was set back"
	h.mu.Unlock()
	for range 11 {
		h.second()
	}
	b.wait(`document.querySelector(".quotalist tbody tr").innerText.includes("150 %")`)
	b.wait(`document.querySelector(".quotas").innerText.includes("it was set back")`)
	b.hash("#/container/" + exampleID(6))
	b.wait(`document.querySelector(".quotalist") && document.querySelector(".quotalist").innerText.includes("104 %")`)
}

func TestHealth(t *testing.T) {
	h := example(t)
	h.mu.Lock()
	h.unready = errors.New("find containers: the hierarchy was unmounted")
	h.distrust = "unproven since the boot"
	h.checks = []exporter.Check{
		{Name: "kernel", Verdict: exporter.VerdictOK, Found: "Linux 6.12.48"},
		{Name: "names.podman", Verdict: exporter.VerdictNone, Found: "podman is not there"},
		{Name: "inotify", Verdict: exporter.VerdictWarning, Found: "little <b>for</b> a host with many containers"},
		{Name: "cgroups", Verdict: exporter.VerdictFailed, Found: "mount cgroup2"},
	}
	h.mu.Unlock()
	b := open(t, h, "#/health")
	for _, want := range []string{
		"find containers: the hierarchy was unmounted", "unproven since the boot", "1.2.3, abcdef012345, go1.26", "eBPF programs",
		"NFLOG group 5", "6 were lost", "host_network", "node-exporter", "Turn accounting.cgroup on", "shadowed", "shop-db-1", `nettally_uncounted_packets_total{cause="no_row"}`,
	} {
		b.wait(fmt.Sprintf(`document.querySelector(".health").innerText.includes(%q)`, want))
	}
	lines := eval[[][]string](b, `[...document.querySelectorAll(".checks tbody tr")].map((tr) => [...tr.cells].map((c) => c.innerText).concat(tr.querySelector(".dot").classList[1]))`)
	want := [][]string{
		{"kernel", "ok", "Linux 6.12.48", "good"},
		{"names.podman", "none", "podman is not there", "unknown"},
		{"inotify", "warning", "little <b>for</b> a host with many containers", "warn"},
		{"cgroups", "failed", "mount cgroup2", "bad"},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
}

func TestAContainer(t *testing.T) {
	h := example(t)
	b := open(t, h, "#/container/"+exampleID(2))
	for _, want := range []string{"shop-db-1", "Not counted, or", "veth0000", "Seeded bytes", "1000000", "SYN-ACK", "com.docker.compose.project", "/api/v1/containers/" + exampleID(2), "/api/v1/recent"} {
		if want == "Not counted, or" {
			want = "In part: The program of another"
		}
		b.wait(fmt.Sprintf(`document.querySelector(".container").innerText.includes(%q)`, want))
	}
	b.wait(`document.querySelectorAll(".used tbody tr").length === 24`)
	b.hash("#/container/nobody")
	b.wait(`document.querySelector(".problem").innerText.includes("There is no container")`)
}

// The links of the page are those that a client without scripts finds, too.
func TestLinks(t *testing.T) {
	h := newHost(t)
	b := open(t, h, "")
	for _, path := range []string{"metrics", "api/v1/containers", "api/v1/history", "api/v1/quotas", "api/v1/alerts", "api/v1/checks", "readyz", "healthz", "version"} {
		if !eval[bool](b, fmt.Sprintf(`document.querySelector('footer a[href="%s"]') !== null`, path)) {
			t.Errorf("the foot has no link to %s", path)
		}
		if _, body := answer(t, h.server.URL+"/"); !strings.Contains(body, `<a href="`+path+`">`) {
			t.Errorf("the page without scripts has no link to %s", path)
		}
	}
}

func answer(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

// A thousand containers work: the rows that are on the screen are there, and the others come
// when they are scrolled to.
func TestAThousandContainers(t *testing.T) {
	h := newHost(t)
	h.thousand(1000)
	b := open(t, h, "#/now?sort=name")
	for range 3 {
		h.busy()
		h.second()
	}
	b.wait(`document.querySelector("table.live").getAttribute("aria-rowcount") === "1001"`)
	b.wait(`document.querySelector("tr[data-id] .name").innerText === "app-0000"`)
	if n := len(b.ids()); n > 100 {
		t.Errorf("%d rows are in the document, want those on the screen alone", n)
	}
	for _, at := range []string{"0.5", "1"} {
		eval[string](b, `(scrollTo(0, document.documentElement.scrollHeight * `+at+`), "")`)
		b.wait(`(() => { const bottom = innerHeight - 4, r = [...document.querySelectorAll("tr[data-id]")].map((x) => x.getBoundingClientRect());
			return r.length > 10 && r[0].top <= 40 && (r.at(-1).bottom >= bottom || document.querySelector('tr[aria-rowindex="1001"]')); })()`)
	}
	b.wait(`document.querySelector('tr[aria-rowindex="1001"] .name').innerText === "app-0999"`)
	eval[string](b, `(scrollTo(0, 0), "")`)
	b.hash("#/now?filter=app-00?7")
	b.wait(`document.querySelectorAll("tr[data-id]").length === 10`)
	b.hash("#/now?filter=team-3+stack-4")
	want := 0
	for i := range 1000 {
		if i%17 == 3 && i%9 == 4 {
			want++
		}
	}
	b.wait(fmt.Sprintf(`document.querySelectorAll("tr[data-id]").length === %d`, want))
}

// Containers in another's numbers are in no sum a second time.
func TestPartsAreInNoSumTwice(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "pod")
	h.add("aaa222", "side", func(c *usage.Container) {
		c.Interfaces, c.IP, c.SharesWith, c.Shares, c.Reason = nil, &usage.Traffic{}, "aaa111", true, usage.SharedNetwork
	})
	b := open(t, h, "")
	h.pass("aaa111", 4096, 0)
	h.pass("aaa222", 1024, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "4.00 KiB/s"`)
	b.wait(cellOf("aaa222", "rx") + ` === "1.00 KiB/s"`)
	if got := b.text("#host-receive"); got != "4.00 KiB/s" {
		t.Errorf("the host receives %s, want 4.00 KiB/s", got)
	}
	b.hash("#/now?filter=side&group=label:none")
	b.wait(`document.querySelector("tr.group .k-rx").innerText === "1.00 KiB/s"`)
}
