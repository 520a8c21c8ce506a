// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// The other tests rely on it that a tab hears what must not happen.
func TestFaultsAreHeard(t *testing.T) {
	h := newHost(t)
	b := open(t, h, "")
	for what, script := range map[string]string{
		"Content Security Policy": `document.body.insertAdjacentHTML("beforeend", "<p style='color: red'>x</p>")`,
		"violates":                `document.body.insertAdjacentHTML("beforeend", "<img src='http://elsewhere.example/x.png'>")`,
		"exception":               `setTimeout(() => { throw new Error("x"); })`,
		"console.error":           `console.error("x")`,
		"dialog":                  `setTimeout(() => alert(1))`,
	} {
		eval[string](b, `(`+script+`, "")`)
		until(func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return slices.ContainsFunc(b.faults, func(f string) bool { return strings.Contains(f, what) })
		})
	}
	b.mu.Lock()
	b.faults = nil
	b.mu.Unlock()
}

// And that what leaves the host is recorded, whatever asks for it.
func TestRequestsThatLeaveAreRecorded(t *testing.T) {
	all := browser(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprint(w, `<script>new Worker(URL.createObjectURL(new Blob(["fetch('http://elsewhere.example/x')"])))</script>`)
	}))
	defer server.Close()
	ctx, cancel := chromedp.NewContext(all.ctx, chromedp.WithNewBrowserContext())
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(server.URL)); err != nil {
		t.Fatal(err)
	}
	until(func() bool {
		all.mu.Lock()
		defer all.mu.Unlock()
		found := slices.Contains(all.left, "GET http://elsewhere.example/x")
		if found {
			all.left = nil
		}
		return found
	})
}
