// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/nettally/nettally/internal/testnet/need"
)

// chromium is the browser of all tests. It reaches loopback only: anything else it asks a proxy
// for, which records that and answers nothing.
type chromium struct {
	ctx  context.Context
	stop func()

	mu   sync.Mutex
	left []string // requests that would have left the host
}

var theBrowser *chromium

func TestMain(m *testing.M) {
	code := m.Run()
	if theBrowser != nil {
		theBrowser.stop()
	}
	os.Exit(code)
}

// browser returns the browser, which is started once.
func browser(t testing.TB) *chromium {
	t.Helper()
	need.Native(t)
	need.Commands(t, "chromium")
	if theBrowser != nil {
		return theBrowser
	}
	b := &chromium{}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !browsersOwn(r.Host) {
			b.mu.Lock()
			b.left = append(b.left, r.Method+" "+r.RequestURI)
			b.mu.Unlock()
		}
		w.WriteHeader(http.StatusBadGateway)
	}))
	profile, err := os.MkdirTemp("", "nettally-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"),
		chromedp.NoSandbox, // root has none
		chromedp.UserDataDir(profile),
		chromedp.WindowSize(1280, 900),
		chromedp.Flag("proxy-server", proxy.URL),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true),
		chromedp.Flag("no-pings", true),
		chromedp.Flag("disable-features", "OptimizationHints,MediaRouter,DialMediaRouteProvider,AutofillServerCommunication,CertificateTransparencyComponentUpdater,Translate,NetworkTimeServiceQuerying"),
		chromedp.Flag("lang", "en-US"),
		chromedp.Flag("font-render-hinting", "none"),
		chromedp.Env("TZ=Europe/Berlin", "HOME="+profile),
	)
	allocated, cancelAll := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocated)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	b.ctx = ctx
	b.stop = func() {
		_ = chromedp.Cancel(ctx)
		cancel()
		cancelAll()
		proxy.Close()
		_ = os.RemoveAll(profile)
	}
	theBrowser = b
	return b
}

// browsersOwn reports whether the browser asks a host by itself, whatever page it shows. What a
// page asks of them is told by the events of its tab.
func browsersOwn(host string) bool {
	name, _, _ := strings.Cut(host, ":")
	return name == "update.googleapis.com" || name == "accounts.google.com"
}

// tab is a tab of the browser, with what went wrong in it.
type tab struct {
	t    testing.TB
	ctx  context.Context
	base string

	mu     sync.Mutex
	faults []string

	closing sync.WaitGroup // of dialogs
}

// open opens the page of a host in a profile of its own: without what other tests have left.
func open(t testing.TB, h *host, fragment string, prepare ...action) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser(t).ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	h.gap(time.Second) // what was added since the last reading is read when the page comes
	return load(t, ctx, h.server.URL+"/", fragment, prepare...)
}

// beside opens another tab of the same profile.
func (b *tab) beside(fragment string) *tab {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	b.t.Cleanup(cancel)
	return load(b.t, ctx, b.base, fragment)
}

func load(t testing.TB, ctx context.Context, base, fragment string, prepare ...action) *tab {
	t.Helper()
	b := &tab{t: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	b.run(call(network.Enable, network.EnableParams{}), call(log.Enable, cdp.Empty{}), call(page.Enable, page.EnableParams{}), call(runtime.Enable, cdp.Empty{}))
	b.run(prepare...)
	b.run(chromedp.Navigate(base + fragment))
	t.Cleanup(b.blameless)
	b.wait(`document.querySelector("header .pulse.on")`)
	return b
}

// hear takes down what must not happen: what the policy forbids, errors, dialogs, and requests
// to anyone else.
func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fault := func(format string, args ...any) { b.faults = append(b.faults, fmt.Sprintf(format, args...)) }
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, b.base) && !strings.HasPrefix(e.Request.URL, "data:") { // the browser's own icons are data
			fault("request to %s", e.Request.URL)
		}
	case *log.EventEntryAdded:
		// A server that is down, or answers 4xx or 5xx, is told in the page.
		if e.Entry.Source != log.EntrySourceNetwork {
			fault("console: %s: %s", e.Entry.Source, e.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		fault("%v", &chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails})
	case *runtime.EventConsoleAPICalled:
		fault("console.%s", e.Type)
	case *page.EventJavascriptDialogOpening:
		fault("dialog: %s", e.Message)
		b.closing.Go(func() { // the tab stands still while it is open
			_ = chromedp.Do(b.ctx, call(page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{}))
		})
	}
}

func (b *tab) blameless() {
	b.closing.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Errorf("the page: %s", f)
	}
	all := theBrowser
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, r := range all.left {
		b.t.Errorf("a request left the host: %s", r)
	}
	all.left = nil
}

func (b *tab) run(actions ...action) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

type action = chromedp.Action[chromedp.Void]

// call is a command of the browser's protocol.
func call[P, R any](command cdp.Command[P, R], parameters P) action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, command, parameters)
		return err
	})
}

// eval returns what an expression is, or what the promise that it is comes to.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	out, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAsValue, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", expression, err)
	}
	return out
}

// wait waits until an expression is true.
func (b *tab) wait(expression string) {
	b.t.Helper()
	for begun, told := time.Now(), false; ; time.Sleep(20 * time.Millisecond) {
		if eval[bool](b, "(() => { try { return !!("+expression+") } catch { return false } })()") {
			return
		}
		if !told && time.Since(begun) > 20*time.Second { // say what it waits for, and go on
			told = true
			b.t.Logf("still waiting for %s; the page says:\n%s", expression, eval[string](b, "document.body.innerText.slice(0, 3000)"))
		}
	}
}

// cell is the text of a column in the row of a container.
func (b *tab) cell(id, column string) string {
	b.t.Helper()
	return eval[string](b, cellOf(id, column))
}

func cellOf(id, column string) string {
	return fmt.Sprintf(`(document.querySelector('tr[data-id="%s"] .k-%s') ?? {innerText: "(no such row)"}).innerText.trim()`, id, column)
}

// ids are the containers of the rows that are there, in their order.
func (b *tab) ids() []string {
	b.t.Helper()
	return eval[[]string](b, `[...document.querySelectorAll("tr[data-id]")].map((r) => r.dataset.id)`)
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q).innerText.trim()", selector))
}

// hash goes to another view of the page.
func (b *tab) hash(fragment string) {
	b.t.Helper()
	eval[string](b, fmt.Sprintf("location.hash = %q", fragment))
}

// phone is the size of one.
func phone() action { return sized(390, 844, 2, true) }

func sized(width, height int64, scale float64, mobile bool) action {
	return call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: scale, Mobile: mobile,
	})
}

// scheme is "light" or "dark".
func scheme(name string) action {
	return call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
}

// fetched is the JSON of an address of a host, with numbers to the digit.
func fetched(t testing.TB, url string) map[string]any {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	decoder.UseNumber()
	var out map[string]any
	if err := decoder.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}
