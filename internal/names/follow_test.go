// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/events"
)

func TestLookupIsWhatIsWanted(t *testing.T) {
	path := socketPath(t)
	web := summary(1, "web")
	web.Labels = map[string]string{"team": "a", "other": "b"}
	startDaemon(t, path, web, summary(2, "web"), summary(3, "db"))
	r, logged := newResolver("unix://"+path, "team")
	r.Want(id(1)) // before Run
	run(t, r)
	r.Want(id(2)) // named alike
	eventually(t, "both are known", func() bool { return name(r, id(1)) == "web" && name(r, id(2)) == "web" })

	want := Meta{Name: "web", Image: "bb", NetworkMode: "bridge", Runtime: "docker", Labels: map[string]string{"team": "a"}}
	got, _ := r.Lookup(id(1))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lookup (-want +got):\n%s", diff)
	}
	got.Labels["team"] = "changed by the caller"
	again, _ := r.Lookup(id(1))
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("second lookup (-want +got):\n%s", diff)
	}
	if _, ok := r.Lookup(id(3)); ok {
		t.Error("a container that nobody wants is known")
	}
	eventually(t, "it says so", func() bool { return len(logged.all()) > 0 })
	if lines := logged.all(); len(lines) != 1 || !strings.Contains(lines[0], "version=20.10.24") {
		t.Errorf("log: %q", lines)
	}
}

func TestRenameIsFollowed(t *testing.T) {
	path := socketPath(t)
	d := startDaemon(t, path, summary(1, "web"))
	r, _ := newResolver("unix://" + path)
	r.refreshEvery = time.Hour // only an event can tell
	r.Want(id(1))
	run(t, r)
	eventually(t, "known", func() bool { return name(r, id(1)) == "web" })
	d.put(summary(1, "shop"))
	for _, renamed := range []string{id(2), "", id(1)} { // others too, and nonsense
		d.events <- events.Message{Type: "container", Action: "rename", Actor: events.Actor{ID: renamed}}
	}
	eventually(t, "renamed", func() bool { return name(r, id(1)) == "shop" })
}

func TestNamesComeWithoutEvents(t *testing.T) {
	for what, answer := range map[string]http.HandlerFunc{
		"refused": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"ended":   func(http.ResponseWriter, *http.Request) {},
		"silent":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"garbage": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Type":"`)
			endless(w, "x")
		},
	} {
		t.Run(what, func(t *testing.T) {
			path := socketPath(t)
			d := startDaemon(t, path, summary(1, "web"))
			d.onEvents = answer
			r, logged := newResolver("unix://" + path)
			r.answerWithin = 2 * time.Second // on a machine with other things to do
			r.Want(id(1))
			run(t, r)
			eventually(t, "known", func() bool { return name(r, id(1)) == "web" })
			d.put(summary(1, "shop"))
			eventually(t, "renamed", func() bool { return name(r, id(1)) == "shop" })
			if lines := logged.all(); len(lines) != 1 {
				t.Errorf("log: %q", lines)
			}
		})
	}
}

func TestSocketComesAndGoes(t *testing.T) {
	path := socketPath(t)
	r, logged := newResolver("auto")
	r.sources[0].paths = []string{path + "-other", path}
	r.Want(id(1))
	run(t, r)
	says := func(what string) func() bool {
		return func() bool {
			lines := logged.all()
			return len(lines) != 0 && strings.Contains(lines[len(lines)-1], what)
		}
	}
	if _, err := r.Probe(t.Context(), "docker"); !errors.Is(err, ErrAbsent) {
		t.Errorf("probe: %v", err)
	}

	// A file that is no socket is none.
	if err := os.WriteFile(path+"-other", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, path, summary(1, "web"))
	eventually(t, "known when the socket appears", func() bool { return name(r, id(1)) == "web" })
	eventually(t, "it says so", says("names come"))
	if lines := logged.all(); len(lines) != 1 || !strings.Contains(lines[0], "names come") {
		t.Errorf("log: %q", lines) // that there was none is no news
	}
	d.stop() // which removes the socket
	eventually(t, "it says that the socket is gone", says("no socket"))
	r.Want(id(2))
	if got := name(r, id(1)); got != "web" {
		t.Errorf("without a socket the name is %q", got)
	}
	startDaemon(t, path, summary(1, "shop"), summary(2, "db"))
	eventually(t, "up to date when it is back", func() bool {
		return name(r, id(1)) == "shop" && name(r, id(2)) == "db"
	})
	eventually(t, "it says so", says("names come"))
	if lines := logged.all(); len(lines) > 4 { // one more if a request was on its way
		t.Errorf("log: %q", lines)
	}
}

func TestLastNameStays(t *testing.T) {
	path := socketPath(t)
	d := startDaemon(t, path, summary(1, "web"))
	r, _ := newResolver("unix://" + path)
	r.Want(id(1))
	r.Want(id(2)) // another runtime's
	run(t, r)
	eventually(t, "known", func() bool { return name(r, id(1)) == "web" })
	leaving := summary(1, "")
	leaving.Names = nil
	d.put(leaving)
	seen, _ := d.asked(id(1))
	eventually(t, "asked again", func() bool { n, _ := d.asked(id(1)); return n > seen })
	d.remove(id(1))

	// Neither is asked for without end, and then the socket is left alone.
	eventually(t, "it rests", func() bool { return rests(r) })
	if n, _ := d.asked(id(2)); n != missesMax {
		t.Errorf("asked for an unknown container %d times", n)
	}
	_, before := d.asked(id(1))
	time.Sleep(5 * r.refreshEvery)
	if _, sessions := d.asked(id(1)); sessions != before {
		t.Errorf("%d connections, then %d", before, sessions)
	}

	if got := name(r, id(1)); got != "web" {
		t.Errorf("the name of a removed container is %q", got)
	}
	d.put(summary(2, "late"))
	r.Want(id(2))
	eventually(t, "known once wanted again", func() bool { return name(r, id(2)) == "late" })
	r.Forget(id(1))
	r.Forget(id(2))
	if _, ok := r.Lookup(id(1)); ok || len(r.wanted)+len(r.sources[0].pending) != 0 {
		t.Error("something stays of what was forgotten")
	}
}

// A container that the runtime lists a moment later than its cgroup is there is asked for
// again soon, not only at the next refresh.
func TestListedLate(t *testing.T) {
	path := socketPath(t)
	d := startDaemon(t, path, summary(1, "web"))
	r, _ := newResolver("unix://" + path)
	r.refreshEvery = time.Hour
	r.Want(id(1))
	run(t, r)
	eventually(t, "known", func() bool { return name(r, id(1)) == "web" })
	r.Want(id(2))
	eventually(t, "asked for", func() bool { n, _ := d.asked(id(2)); return n > 0 })
	d.put(summary(2, "late"))
	eventually(t, "known, too", func() bool { return name(r, id(2)) == "late" })
	r.Want(id(3)) // another runtime's
	eventually(t, "asked for again and again", func() bool { n, _ := d.asked(id(3)); return n == 1+len(missedAgain) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := len(r.sources[0].missed); left != 0 {
		t.Errorf("%d are to be asked for again", left)
	}
}

func TestManyAreAskedForTogether(t *testing.T) {
	const many = 1000
	path := socketPath(t)
	d := startDaemon(t, path)
	for n := range many {
		d.put(summary(n, "web"))
	}
	r, _ := newResolver("unix://" + path)
	r.refreshEvery = time.Hour
	for n := range many {
		r.Want(id(n))
		r.Want(id(n))
	}
	run(t, r)
	eventually(t, "all are known", func() bool {
		for n := range many {
			if name(r, id(n)) == "" {
				return false
			}
		}
		return true
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if want := (many + mobyBatch - 1) / mobyBatch; len(d.lists) != want || d.most != 1 {
		t.Errorf("%d requests (want %d), %d at once (want 1)", len(d.lists), want, d.most)
	}
}

func TestOneIsTooLarge(t *testing.T) {
	path := socketPath(t)
	large := summary(7, "large")
	large.Labels = map[string]string{"x": strings.Repeat("x", 10<<20)}
	d := startDaemon(t, path, large)
	r, logged := newResolver("unix://" + path)
	for n := range 40 {
		if n != 7 {
			d.put(summary(n, "web"))
		}
		r.Want(id(n))
	}
	run(t, r)
	eventually(t, "all others are known", func() bool {
		for n := range 40 {
			if n != 7 && name(r, id(n)) != "web" {
				return false
			}
		}
		return true
	})
	_, before := d.asked(id(7))
	eventually(t, "refreshed", func() bool { _, n := d.asked(id(7)); return n > before+2 })
	if got := name(r, id(7)); got != "" {
		t.Errorf("the large one is %q", got)
	}
	if lines := logged.all(); len(lines) != 2 || !strings.Contains(lines[0], id(7)) {
		t.Errorf("log: %q", lines)
	}
}

func TestLabelsFollowTheList(t *testing.T) {
	path := socketPath(t)
	web := summary(1, "web")
	web.Labels = map[string]string{"a": "1", "b": "2"}
	startDaemon(t, path, web)
	var list atomic.Pointer[[]string]
	list.Store(&[]string{"a"})
	r, _ := newResolver("unix://" + path)
	r.options.Labels = func() []string { return *list.Load() }
	r.Want(id(1))
	run(t, r)
	has := func(want map[string]string) func() bool {
		return func() bool { meta, _ := r.Lookup(id(1)); return cmp.Equal(want, meta.Labels) }
	}
	eventually(t, "labels", has(map[string]string{"a": "1"}))
	list.Store(&[]string{"b"})
	eventually(t, "changed labels", has(map[string]string{"b": "2"}))
}

// badPeers are what a socket can have behind it. Each is served a connection.
var badPeers = map[string]func(net.Conn){
	"silent":         func(net.Conn) {},
	"closes":         func(c net.Conn) { _ = c.Close() },
	"not HTTP":       func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH\r\n"+strings.Repeat("\x1b\xff", 9999)) },
	"a web page":     answer("200 OK", "<html>"),
	"wrong types":    answer("200 OK", `{"Version":7,"Components":"none"}`),
	"a long error":   answer("500 Oh", strings.Repeat("\x1b[31mno\n", 100_000)),
	"a redirect":     answer("302 Found\r\nLocation: http://127.0.0.1:9/", ""),
	"endless header": func(c net.Conn) { endless(c, "HTTP/1.1 200 OK\r\nX: y\r\n") },
	"endless body": func(c net.Conn) {
		answer("200 OK", `{"Version":"`)(c)
		endless(c, "x")
	},
}

func answer(status, body string) func(net.Conn) {
	return func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\nConnection: close\r\n\r\n"+body)
		}
		if !strings.HasSuffix(body, `"`) {
			_ = c.Close()
		}
	}
}

func TestBadPeers(t *testing.T) {
	printed := &records{} // net/http's own log
	log.SetOutput(printed)
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	for what, serve := range badPeers {
		t.Run(what, func(t *testing.T) {
			path := socketPath(t)
			accepted := startPeer(t, path, serve)
			r, logged := newResolver("unix://" + path)
			r.answerWithin = 100 * time.Millisecond
			r.Want(id(1))
			stop := run(t, r)
			eventually(t, "it tries again", func() bool { return accepted() > 8 })
			if _, ok := r.Lookup(id(1)); ok {
				t.Error("it knows a container")
			}
			_, err := r.Probe(t.Context(), "docker")
			if err == nil || len(err.Error()) > 2*textMax || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("probe: %.2000q", err)
			}
			stop()
			if lines := logged.all(); len(lines) != 1 || !strings.Contains(lines[0], "WARN") {
				t.Errorf("log: %q", lines)
			}
			if lines := printed.all(); len(lines) != 0 {
				t.Errorf("printed: %.200q", lines)
			}
			t.Log(err)
		})
	}
}

func TestBadLists(t *testing.T) {
	good := `[{"Id":"` + id(1) + "\",\"Names\":[\"/web\xff\\u001b\"]}]"
	for what, bad := range map[string]string{
		"garbage":        "garbage",
		"wrong types":    `[{"Id":7,"Names":{}}]`,
		"cut short":      good[:len(good)/2],
		"deep":           strings.Repeat("[", 500_000),
		"somebody else":  `[{"Id":"` + id(2) + `","Names":["/x"]},null,{}]`,
		"nothing at all": "",
	} {
		t.Run(what, func(t *testing.T) {
			path := socketPath(t)
			var lists atomic.Int32
			var heal atomic.Bool
			inner := &daemon{}
			serveLists(t, path, inner, func(w http.ResponseWriter) {
				lists.Add(1)
				if heal.Load() {
					_, _ = io.WriteString(w, good)
					return
				}
				_, _ = io.WriteString(w, bad)
			})
			r, _ := newResolver("unix://" + path)
			r.Want(id(1))
			run(t, r)
			eventually(t, "it tries again", func() bool { return lists.Load() > 2 })
			if _, ok := r.Lookup(id(1)); ok {
				t.Error("it knows a container")
			}
			heal.Store(true)
			r.Want(id(1))
			eventually(t, "healed", func() bool { return name(r, id(1)) == "web\uFFFD\uFFFD" })
			if _, ok := r.Lookup(id(2)); ok {
				t.Error("it knows what was not asked for")
			}
		})
	}
}

// serveLists starts a daemon whose answers for containers are list's.
func serveLists(t *testing.T, path string, d *daemon, list func(http.ResponseWriter)) {
	t.Helper()
	listener := listen(t, path)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/containers/json") {
			list(w)
			return
		}
		d.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

func TestNothingStaysAfterRun(t *testing.T) {
	for what, start := range map[string]func(path string) (busy func() bool){
		"waiting for an answer": func(path string) func() bool {
			accepted := startPeer(t, path, badPeers["silent"])
			return func() bool { return accepted() > 0 }
		},
		"following events": func(path string) func() bool {
			d := startDaemon(t, path)
			return func() bool { n, _ := d.asked(id(1)); return n > 0 }
		},
		"following pods": func(path string) func() bool {
			k := startKube(t, path)
			return func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.some > 0 }
		},
	} {
		t.Run(what, func(t *testing.T) {
			path := socketPath(t)
			busy := start(path)
			o := Options{Docker: "unix://" + path, Podman: "off", CRI: "off"}
			if what == "following pods" {
				o.Docker, o.CRI = o.CRI, o.Docker
			}
			r, _ := newResolverOf(o)
			r.answerWithin, r.refreshEvery = time.Hour, time.Hour
			r.Want(id(1))
			stop := run(t, r)
			eventually(t, "it is "+what, busy)
			stop()
			// Those of net/http end on their own, soon after the request.
			eventually(t, "its goroutines end", func() bool {
				stacks := stacks()
				return !strings.Contains(stacks, "net/http.(*persistConn)") &&
					!strings.Contains(stacks, "names.(*moby)") &&
					!strings.Contains(stacks, "grpc.newClientStream") &&
					!strings.Contains(stacks, "grpc/internal/transport.(*http2Client)") &&
					!strings.Contains(stacks, "moby/client")
			})
		})
	}
}

// stacks returns the stacks of all goroutines.
func stacks() string {
	buffer := make([]byte, 1<<20)
	return string(buffer[:runtime.Stack(buffer, true)])
}

func TestOff(t *testing.T) {
	r, logged := newResolver("off")
	r.Want(id(1))
	if err := r.Run(t.Context()); err != nil {
		t.Errorf("run: %v", err)
	}
	if got, err := r.Probe(t.Context(), "docker"); err != nil || got != "off" {
		t.Errorf("probe: %q, %v", got, err)
	}
	if lines := logged.all(); len(lines) != 0 {
		t.Errorf("log: %q", lines)
	}
}

func TestProbe(t *testing.T) {
	path := socketPath(t)
	startDaemon(t, path)
	r, _ := newResolver("unix://" + path)
	got, err := r.Probe(t.Context(), "docker")
	if want := "docker 20.10.24 (API 1.41) at unix://" + path; err != nil || got != want {
		t.Errorf("probe: %q, %v, want %q", got, err, want)
	}

	podman := socketPath(t)
	startPeer(t, podman, answer("200 OK", `{"Version":"4.3.1","Components":[{"Name":"Podman Engine"}]}`))
	other, _ := newResolver("unix://" + podman)
	if got, err := other.Probe(t.Context(), "docker"); err != nil || !strings.HasPrefix(got, "podman 4.3.1 (API ") {
		t.Errorf("probe where podman answers: %q, %v", got, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Probe(ctx, "docker"); !errors.Is(err, context.Canceled) {
		t.Errorf("probe after cancel: %v", err)
	}
	for give, want := range map[string]string{
		"tcp://127.0.0.1:2375":                `find docker: "tcp://127.0.0.1:2375" is none of off, auto and unix:///path`,
		"unix:///" + strings.Repeat("x", 200): "too long",
		"unix://" + path + "-missing":         "no such file or directory",
	} {
		r, _ := newResolver(give)
		if _, err := r.Probe(t.Context(), "docker"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("probe %q: %v, want %q", give, err, want)
		}
	}
	missing, _ := newResolver("unix://" + path + "-missing")
	if _, err := missing.Probe(t.Context(), "docker"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("probe of a missing socket: %v", err)
	}
}
