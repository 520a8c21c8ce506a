// SPDX-License-Identifier: Apache-2.0

// Package page is the web page: its files, and the handler that serves them. The page reads
// the API like any other client, by addresses relative to its own, and asks nobody else.
//
// Its source is TypeScript in src, of which go generate makes dist.
package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:generate go run ./internal/bundle

//go:embed dist
var dist embed.FS

// policy lets the page run its own scripts, look as its own styles say and read its own host,
// and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; worker-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Assets is the path of the files that the page loads, under that of the page.
const Assets = "/assets/"

// file is a file as it is sent.
type file struct {
	content, packed []byte
	kind, etag      string
}

// site is all files by their path.
type site map[string]file

// all packs the files at the first request: nobody may ever look.
var all = sync.OnceValue(func() site {
	s := site{}
	index := read("index.html")
	for _, name := range []string{"main.js", "main.css", "worker.js", "icon.svg", "NOTICE.txt"} {
		f := newFile(name, read(name))
		// The name has the hash, so what it names never changes.
		extension := path.Ext(name)
		named := strings.TrimSuffix(name, extension) + "-" + f.hash() + extension
		s[Assets+named] = f
		index = bytes.ReplaceAll(index, []byte("{{"+name+"}}"), []byte(strings.TrimPrefix(Assets, "/")+named))
	}
	s["/"] = newFile("index.html", index)
	return s
})

func read(name string) []byte {
	content, err := dist.ReadFile("dist/" + name)
	if err != nil {
		panic(err) // the binary was built without it
	}
	return content
}

func newFile(name string, content []byte) file {
	sum := sha256.Sum256(content)
	f := file{content: content, etag: hex.EncodeToString(sum[:12])}
	switch path.Ext(name) {
	case ".js":
		f.kind = "text/javascript; charset=utf-8"
	case ".css":
		f.kind = "text/css; charset=utf-8"
	case ".svg":
		f.kind = "image/svg+xml"
	case ".html":
		f.kind = "text/html; charset=utf-8"
	case ".txt":
		f.kind = "text/plain; charset=utf-8"
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	f.packed = packed.Bytes()
	return f
}

func (f file) hash() string { return f.etag[:12] }

// Handler serves the page at / and what it loads below [Assets]; other answers what is neither.
// It expects GET and HEAD only, and is safe for concurrent use.
func Handler(other http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := all()[r.URL.Path]
		if !ok {
			other.ServeHTTP(w, r)
			return
		}
		f.serve(w, r)
	})
}

func (f file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Type", f.kind)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if r.URL.Path != "/" {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	content, etag := f.content, f.etag
	if acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		content, etag = f.packed, f.etag+"-gzip"
	}
	h.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// acceptsGzip reports whether a client takes gzip: it names that, with no weight or one above 0.
func acceptsGzip(r *http.Request) bool {
	for coding := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, parameter, _ := strings.Cut(coding, ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		weight, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q=")
		q, err := strconv.ParseFloat(weight, 64)
		return !ok || err == nil && q > 0
	}
	return false
}
