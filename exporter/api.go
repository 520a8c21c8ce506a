// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter/page"
	"github.com/nettally/nettally/internal/usage"
)

// routes returns the handler of all paths. What it answers by itself, unknown
// paths and wrong methods too, is JSON.
func (e *Exporter) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.Handler) { mux.Handle(pattern, readOnly(h)) }
	handle("/metrics", e.inPlace(e.metrics))
	handle("/api/v1/containers", e.inPlace(e.containers))
	handle("/api/v1/containers/{container}", e.inPlace(e.container))
	handle("/api/v1/stream", http.HandlerFunc(e.stream))
	handle("/api/v1/recent", e.inPlace(e.recent))
	handle("/api/v1/history", e.inPlace(e.history))
	handle("/api/v1/quotas", e.inPlace(e.listQuotas))
	handle("/api/v1/alerts", e.inPlace(e.listAlerts))
	handle("/api/v1/checks", e.inPlace(e.checks))
	mux.Handle("/api/v1/quotas/{name}/set", changes(e.changeQuota(false)))
	mux.Handle("/api/v1/quotas/{name}/reset", changes(e.changeQuota(true)))
	mux.Handle("/api/v1/notifiers/{name}/test", changes(http.HandlerFunc(e.testNotifier)))
	handle("/healthz", http.HandlerFunc(e.health))
	handle("/readyz", http.HandlerFunc(e.readiness))
	handle("/version", http.HandlerFunc(e.version))
	none := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.fail(w, http.StatusNotFound, fmt.Errorf("find page %q: there is none", r.URL.Path))
	})
	handle("/{$}", page.Handler(none))
	handle(page.Assets, page.Handler(none))
	mux.Handle("/", none)
	return onlyPaths(mux)
}

// onlyPaths answers requests for no path, which are OPTIONS * and CONNECT: http.ServeMux would
// not answer them as JSON. It also keeps the body off redirects to a clean path, in which
// http.Redirect would repeat the query as it is.
func onlyPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/") {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("find page %q: not a path", r.RequestURI))
			return
		}
		w.Header()["Content-Type"] = nil // what is not a redirect sets its own
		next.ServeHTTP(w, r)
	})
}

// readOnly refuses what is neither GET nor HEAD.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here; use GET")
	})
}

// changes refuses what is not POST, and what did not come over the unix socket: there
// the file's mode says who may change something.
func changes(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodPost:
			w.Header().Set("Allow", "POST")
			refuse(w, http.StatusMethodNotAllowed, r.Method+" is not allowed here; use POST")
		case !overSocket(r):
			refuse(w, http.StatusForbidden, "changes are taken on the unix socket only (exporter.socket)")
		default:
			if err := readBody(w, r); err != nil {
				refuse(w, http.StatusBadRequest, err.Error())
				return
			}
			next.ServeHTTP(w, r)
		}
	})
}

// take takes the snapshot for a request. Where that can't be had it answers, and
// returns false.
func (e *Exporter) take(w http.ResponseWriter, r *http.Request) (usage.Snapshot, bool) {
	ctx, cancel := context.WithTimeout(r.Context(), waitTimeout)
	defer cancel()
	snap, err := e.snapshot(ctx)
	if err != nil {
		e.fail(w, http.StatusServiceUnavailable, err)
	}
	return snap, err == nil
}

func (e *Exporter) containers(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	snap, ok := e.take(w, r)
	if !ok {
		return
	}
	body := Containers{
		Containers: containersOf(slices.DeleteFunc(snap.Containers, q.excludes)),
		TakenAt:    snap.TakenAt.UTC(),
		BootMS:     e.bootOf(&snap).Milliseconds(),
		Source:     e.source,
		NFLOG:      nflogStateOf(snap.Log),
	}
	if q.all {
		body.Unowned = interfacesOf(snap.Unowned)
	}
	e.answer(w, body)
}

// bootOf returns CLOCK_BOOTTIME when the counters of a snapshot were read.
func (e *Exporter) bootOf(snap *usage.Snapshot) time.Duration {
	boot := e.boot()
	if !snap.ReadAt.IsZero() {
		boot -= max(snap.TakenAt.Sub(snap.ReadAt), 0)
	}
	return boot
}

// bootTime returns CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // only fails for clocks that there are not
	return time.Duration(now.Nano())
}

func (e *Exporter) container(w http.ResponseWriter, r *http.Request) {
	if _, err := parseParameters(r.URL.RawQuery); err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	snap, ok := e.take(w, r)
	if !ok {
		return
	}
	wanted := r.PathValue("container")
	found := find(snap.Containers, wanted)
	switch len(found) {
	case 0:
		e.fail(w, http.StatusNotFound, fmt.Errorf("find container %q: no id, name or start of an id matches", wanted))
	case 1:
		e.answer(w, containerOf(&found[0]))
	default:
		e.fail(w, http.StatusConflict, ambiguous(wanted, found))
	}
}

func (e *Exporter) health(w http.ResponseWriter, _ *http.Request) {
	e.answer(w, status{"ok"})
}

func (e *Exporter) readiness(w http.ResponseWriter, _ *http.Request) {
	if e.ready != nil {
		if err := e.ready(); err != nil {
			e.fail(w, http.StatusServiceUnavailable, err)
			return
		}
	}
	e.answer(w, status{"ready"})
}

func (e *Exporter) version(w http.ResponseWriter, _ *http.Request) {
	e.answer(w, e.build)
}

// find returns the containers that are meant, by the first rule that finds any:
// the full id, the name, the start of the id. A name is often that of a running
// container and of its stopped predecessors; then the one that runs is meant.
func find(containers []usage.Container, wanted string) []usage.Container {
	rules := []func(*usage.Container) bool{
		func(c *usage.Container) bool { return c.ID == wanted },
		func(c *usage.Container) bool { return c.Name == wanted && c.State == usage.Running },
		func(c *usage.Container) bool { return c.Name == wanted },
		func(c *usage.Container) bool { return strings.HasPrefix(c.ID, wanted) },
	}
	for _, matches := range rules {
		var found []usage.Container
		for i := range containers {
			if matches(&containers[i]) {
				found = append(found, containers[i])
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

func ambiguous(wanted string, found []usage.Container) error {
	const most = 10
	var list []string
	for i := range found[:min(len(found), most)] {
		list = append(list, fmt.Sprintf("%s (%s, %s)", found[i].ID, found[i].Name, found[i].State))
	}
	if len(found) > most {
		list = append(list, "…")
	}
	return fmt.Errorf("find container %q: %d match, use the id: %s", wanted, len(found), strings.Join(list, ", "))
}

// query is what the list of containers is narrowed to.
type query struct {
	name, namespace string // globs of path.Match, "" for all
	runtime, state  string // "" for all
	all             bool
}

// excludes says whether the query leaves a container out.
func (q query) excludes(c usage.Container) bool {
	return q.name != "" && !globbed(q.name, c.Name) ||
		q.namespace != "" && !globbed(q.namespace, c.Namespace) ||
		q.runtime != "" && q.runtime != c.Runtime ||
		q.state != "" && q.state != string(c.State)
}

// globbed matches a pattern that parseQuery has checked.
func globbed(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return ok && err == nil
}

// parseQuery refuses what it does not know: a filter that is silently ignored
// gives the numbers of other containers.
func parseQuery(raw string) (query, error) {
	p, err := parseParameters(raw, "name", "namespace", "runtime", "state", "all")
	if err != nil {
		return query{}, err
	}
	q := query{
		name:      p["name"],
		namespace: p["namespace"],
		runtime:   p["runtime"],
		state:     p["state"],
		all:       p["all"] == "true",
	}
	for _, key := range []string{"name", "namespace"} {
		if _, err := path.Match(p[key], ""); err != nil {
			return query{}, fmt.Errorf("query parameter %s: %q is not a glob: %w", key, p[key], err)
		}
	}
	if s := usage.State(q.state); s != "" && s != usage.Running && s != usage.Stopped {
		return query{}, fmt.Errorf("query parameter state: %q is neither running nor stopped", q.state)
	}
	if all := p["all"]; all != "" && all != "true" && all != "false" {
		return query{}, fmt.Errorf("query parameter all: %q is neither true nor false", all)
	}
	return q, nil
}

// parseParameters returns a query string's parameters, each of which must be
// known and be given once.
func parseParameters(raw string, known ...string) (map[string]string, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("parse query: %w", err)
	}
	parameters := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			return nil, unknownParameter(key, known)
		}
		if len(values[key]) > 1 {
			return nil, fmt.Errorf("query parameter %s: given %d times", key, len(values[key]))
		}
		parameters[key] = values[key][0]
	}
	return parameters, nil
}

func unknownParameter(key string, known []string) error {
	if len(known) == 0 {
		return fmt.Errorf("query parameter %q: unknown; there are none here", key)
	}
	return fmt.Errorf("query parameter %q: unknown; there are %s", key, strings.Join(known, ", "))
}

// failure is the body of every answer that is not a success.
type failure struct {
	Error string `json:"error"`
}

type status struct {
	Status string `json:"status"`
}

func (e *Exporter) answer(w http.ResponseWriter, body any) { writeJSON(w, http.StatusOK, body) }

func (e *Exporter) fail(w http.ResponseWriter, code int, err error) {
	refuse(w, code, err.Error())
}

// refuse says why there is no success. JSON may hold control characters beyond ASCII as they
// are, and a reason may hold any text of a request or of a container: a terminal gets none.
func refuse(w http.ResponseWriter, code int, reason string) {
	writeJSON(w, code, failure{escaped(reason)})
}

// escaped returns a text with what can't be printed as Go writes it in a string, but for the
// ends of lines.
func escaped(text string) string {
	var out strings.Builder
	for _, r := range text {
		if r == '\n' || strconv.IsPrint(r) {
			out.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		out.WriteString(quoted[1 : len(quoted)-1])
	}
	return out.String()
}

// writeJSON ignores an error of the write: the client is gone, and nobody is
// left to tell.
func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// errorText returns what a failure's body says, or "".
func errorText(body []byte) error {
	var f failure
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		return errors.New("no reason given")
	}
	return errors.New(f.Error)
}
