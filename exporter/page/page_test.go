// SPDX-License-Identifier: Apache-2.0

package page_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter/page"
)

func ask(method, path string, header ...string) *http.Response {
	other := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	page.Handler(other).ServeHTTP(w, r)
	return w.Result()
}

func read(t *testing.T, r *http.Response) []byte {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// assets are the files that the page names.
func assets(t *testing.T) []string {
	t.Helper()
	found := regexp.MustCompile(`"(assets/[^"]+)"`).FindAllSubmatch(read(t, ask("GET", "/")), -1)
	var all []string
	for _, f := range found {
		all = append(all, "/"+string(f[1]))
	}
	if len(all) != 5 {
		t.Fatalf("the page names %q, want 5 files", all)
	}
	return all
}

// All of the page is at most 120 KB over the wire.
func TestTheWireIsShort(t *testing.T) {
	total := 0
	for _, path := range append(assets(t), "/") {
		r := ask("GET", path, "Accept-Encoding", "gzip, br")
		n := len(read(t, r))
		t.Logf("%s: %d bytes", path, n)
		total += n
	}
	t.Logf("in all %d bytes", total)
	if total > 120_000 {
		t.Errorf("the page is %d bytes over the wire, want 120,000 at most", total)
	}
}

func TestHeaders(t *testing.T) {
	for _, path := range append(assets(t), "/") {
		plain, packed := ask("GET", path), ask("GET", path, "Accept-Encoding", "gzip")
		if plain.StatusCode != 200 || packed.StatusCode != 200 {
			t.Fatalf("%s: %s, %s", path, plain.Status, packed.Status)
		}
		unpacked, err := gzip.NewReader(packed.Body)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(unpacked)
		if err != nil || !bytes.Equal(content, read(t, plain)) {
			t.Errorf("%s: packed it is other content (err %v)", path, err)
		}
		if plain.Header.Get("ETag") == packed.Header.Get("ETag") {
			t.Errorf("%s: one ETag for both codings", path)
		}
		for _, r := range []*http.Response{plain, packed} {
			csp := r.Header.Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
				if !strings.Contains(csp, want) {
					t.Errorf("%s: the policy %q lacks %q", path, csp, want)
				}
			}
			if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
				t.Errorf("%s: the policy %q is weak", path, csp)
			}
			if r.Header.Get("X-Content-Type-Options") != "nosniff" || r.Header.Get("Referrer-Policy") != "no-referrer" || r.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s: header %v", path, r.Header)
			}
			again := ask("GET", path, "If-None-Match", r.Header.Get("ETag"), "Accept-Encoding", map[bool]string{true: "gzip"}[r == packed])
			if again.StatusCode != http.StatusNotModified {
				t.Errorf("%s: %s for the same ETag, want 304", path, again.Status)
			}
		}
		cache, immutable := plain.Header.Get("Cache-Control"), path != "/"
		if strings.Contains(cache, "immutable") != immutable || (cache == "no-cache") == immutable {
			t.Errorf("%s: Cache-Control %q", path, cache)
		}
	}
}

func TestOthersAreNotThePages(t *testing.T) {
	for _, path := range []string{"/assets/", "/assets/main.js", "/assets/main-000000000000.js", "/index.html", "/assets/../page.go", "/dist/main.js"} {
		if r := ask("GET", path); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s, want it passed on", path, r.Status)
		}
	}
}

func TestAcceptEncoding(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "br, GZIP;q=0.5": true, "gzip;q=0": false, "gzip; q=0.000": false, "gzip;q=1": true, "deflate": false, "gzip;q=x": false, "x-gzip": false,
	} {
		if got := ask("GET", "/", "Accept-Encoding", header).Header.Get("Content-Encoding") == "gzip"; got != want {
			t.Errorf("Accept-Encoding %q: packed %v, want %v", header, got, want)
		}
	}
}

// The markup has no script, style or handler of its own, which the policy would refuse, and no
// address that is not relative.
func TestMarkup(t *testing.T) {
	markup := string(read(t, ask("GET", "/")))
	for _, never := range []string{"<style", " style=", " onclick=", `="/`, "http:", "https:", "{{"} {
		if strings.Contains(markup, never) {
			t.Errorf("the page has %q", never)
		}
	}
	if regexp.MustCompile(`<script[^>]*>[^<]`).MatchString(markup) {
		t.Error("the page has a script of its own")
	}
}
