// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/view"
)

// stage is a host whose containers a test moves. It is safe for concurrent use.
type stage struct {
	mu         sync.Mutex
	containers []usage.Container
	moving     func(turn int, c []usage.Container) // changes them at each reading, nil for nothing
	turn       int
}

// put has a container on the stage, in place of the one with its id.
func (s *stage) put(c usage.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.containers, func(other usage.Container) bool { return other.ID == c.ID })
	if i < 0 {
		s.containers = append(s.containers, c)
		return
	}
	s.containers[i] = c
}

// read is a reading, at which the containers move if a turn is theirs.
func (s *stage) read(turn bool) usage.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if turn && s.moving != nil {
		s.turn++
		s.moving(s.turn, s.containers)
	}
	snap := usage.Snapshot{TakenAt: time.Now(), Containers: slices.Clone(s.containers)}
	for i := range snap.Containers {
		c := &snap.Containers[i]
		c.Interfaces = slices.Clone(c.Interfaces)
	}
	return snap
}

func (s *stage) move(moving func(turn int, c []usage.Container)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moving = moving
}

// actor returns a container with what it has used by one interface.
func actor(id int, name string, received, transmitted uint64) usage.Container {
	c := usage.Container{
		ID: fmt.Sprintf("%064x", id), Name: name, Runtime: "docker", Image: "example/app:1", State: usage.Running,
		StartedAt: time.Now().Add(-time.Hour), NetworkMode: "bridge", Labels: map[string]string{},
		Interfaces: []usage.Interface{{Name: "eth0", HostInterface: fmt.Sprint("veth", id), Hook: "tcx"}},
	}
	use(&c, received, transmitted)
	return c
}

// use adds to what a container has used: packets of 1,000 bytes.
func use(c *usage.Container, received, transmitted uint64) {
	add := func(to *usage.Counts, n uint64) {
		v := &to.Cells[usage.FamilyIPv4][usage.ProtocolTCP]
		v.Bytes, v.Packets = v.Bytes+n, v.Packets+n/1000
		to.Interface.Bytes, to.Interface.Packets = to.Interface.Bytes+n, to.Interface.Packets+n/1000
		to.SYN += n / 10_000
	}
	for _, t := range []*usage.Traffic{&c.Traffic, &c.Interfaces[0].Traffic} {
		add(&t.Receive, received)
		add(&t.Transmit, transmitted)
	}
}

// stageQuotas are the quotas of a stage.
type stageQuotas struct {
	hostileQuotas
	foremost map[string]quota.Foremost
}

func (q *stageQuotas) Foremost() map[string]quota.Foremost { return q.foremost }

// perform makes a daemon of a stage.
func perform(t *testing.T, s *stage) (*exporter.Exporter, *live.Hub) {
	t.Helper()
	ready := make(chan struct{})
	close(ready)
	quotas := &stageQuotas{
		hostileQuotas: hostileQuotas{status: []quota.Status{{Quota: "monthly", Key: "web", Name: "web", Per: "name", Used: 83 << 20, Limit: 100 << 20, Unit: "bytes", Ratio: 0.83}}},
		foremost:      map[string]quota.Foremost{fmt.Sprintf("%064x", 1): {Quota: "monthly", Key: "web", Ratio: 0.83}},
	}
	hub := live.New(live.Options{
		Read:  func(context.Context, bool, bool) usage.Snapshot { return s.read(true) },
		Ready: ready, Quotas: quotas,
	})
	e, err := exporter.New(exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return s.read(false), nil },
		History: func(_ context.Context, q exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
			hour := q.To.Truncate(time.Hour)
			return []exporter.HistoryRow{{Start: hour, End: hour.Add(time.Hour), Key: q.Container, Receive: exporter.HistoryCounts{Bytes: 77 << 20}}}, nil
		},
		Live: hub, Quotas: quotas, Source: "bpf",
		Settings: func() exporter.Settings { return exporter.Settings{} },
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e, hub
}

// play serves a stage at a socket until the test or the returned function ends it.
func play(t *testing.T, s *stage, socket string) (end func()) {
	t.Helper()
	e, hub := perform(t, s)
	listeners, err := exporter.Listen("", socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, run := range []func() error{func() error { return hub.Run(ctx) }, func() error { return e.Serve(ctx, listeners) }} {
		all.Go(func() {
			if err := run(); err != nil {
				t.Error(err)
			}
		})
	}
	end = sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(end)
	return end
}

// terminal is a tmux in which `nettally top` runs.
type terminal struct {
	t      *testing.T
	server string // the socket of tmux, which is nobody else's
	config string // the user's folder for settings
	socket string // nettally's
}

// open has `nettally top` in a terminal of a size.
func open(t *testing.T, socket string, columns, lines int, env ...string) *terminal {
	t.Helper()
	need.Native(t)
	need.Commands(t, "tmux")
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, server: filepath.Join(dir, "tmux"), config: filepath.Join(dir, "config"), socket: socket}
	command := slices.Concat([]string{"env", "-u", "LC_ALL", "-u", "LANG", asCommand + "=1", "XDG_CONFIG_HOME=" + term.config, "LC_CTYPE=C.UTF-8"}, env,
		[]string{self, "top", "--config", "/dev/null", "--socket", socket, "2>" + filepath.Join(dir, "stderr")})
	term.tmux("-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(columns), "-y", strconv.Itoa(lines),
		strings.Join(command, " ")+"; echo ended; exec sleep 1000")
	term.tmux("set-option", "-g", "status", "off")
	t.Cleanup(func() {
		term.tmux("kill-server")
		if text, _ := os.ReadFile(filepath.Join(dir, "stderr")); len(text) > 0 {
			t.Errorf("on stderr: %s", text)
		}
	})
	return term
}

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	command := exec.Command("tmux", append([]string{"-u", "-S", term.server}, args...)...)
	command.Env = append(os.Environ(), "TERM=xterm-256color", "TMUX=")
	out, err := command.CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys types keys, as tmux names them.
func (term *terminal) keys(keys ...string) {
	term.t.Helper()
	term.tmux(append([]string{"send-keys"}, keys...)...)
}

func (term *terminal) screen() string { return term.tmux("capture-pane", "-p") }

// until waits for a screen.
func (term *terminal) until(what string, is func(screen string) bool) string {
	term.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		screen := term.screen()
		if is(screen) {
			return screen
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("waited for %s; the screen is\n%s", what, screen)
		}
	}
}

// shows waits until all texts are on the screen, and returns it.
func (term *terminal) shows(texts ...string) string {
	term.t.Helper()
	return term.until(fmt.Sprintf("%q", texts), func(screen string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(screen, text) })
	})
}

// hides waits until a text is not on the screen.
func (term *terminal) hides(text string) string {
	term.t.Helper()
	return term.until("no "+text, func(screen string) bool { return !strings.Contains(screen, text) })
}

// aStage has a few containers that move.
func aStage() *stage {
	s := &stage{}
	for i, name := range []string{"web", "api", "db", "cache"} {
		c := actor(i+1, name, uint64(i+1)*123_456_789, uint64(i+1)*9_876_543)
		if i < 2 {
			c.Labels["com.docker.compose.project"] = "shop"
		}
		s.put(c)
	}
	old := actor(9, "old-job", 1<<30, 1<<20)
	old.State, old.StoppedAt = usage.Stopped, time.Now()
	s.put(old)
	vpn := actor(8, "vpn", 0, 0)
	vpn.Reason = usage.Shadowed
	s.put(vpn)
	s.move(func(_ int, c []usage.Container) {
		use(&c[0], 500_000, 20_000)
		use(&c[1], 90_000, 5_000)
		use(&c[2], 4_000, 700)
	})
	return s
}

func socketIn(t *testing.T) string { return filepath.Join(t.TempDir(), "socket") }

// Every key does what the help says, seen from outside.
func TestTopKeys(t *testing.T) {
	s, socket := aStage(), socketIn(t)
	play(t, s, socket)
	term := open(t, socket, 140, 30)
	term.shows("5 containers, 1 ended", "KiB", "live", "per second", "web", "83%", "!vpn", "counted in part: shadowed")
	term.until("a rate", func(screen string) bool {
		return strings.Contains(lineOf(screen, "web"), "KiB ") && fields(screen, "web")[1] != "–"
	})

	term.keys("j")
	term.shows("▌")
	term.keys("Down", "Up", "k", "End", "Home", "PageDown", "PageUp")
	term.keys("Escape")
	term.hides("▌")
	term.keys("a")
	term.shows("old-job", "stopped")
	term.keys("a")
	term.hides("old-job")
	for _, unit := range []string{"kB", "kbit", "Kibit", "KiB"} {
		term.keys("u")
		term.shows(unit + "  every 1s")
	}
	term.keys("t")
	term.hides("─ total ─")
	term.keys("t")
	term.hides("─ per second ─")
	term.keys("t")
	term.shows("─ total ─", "─ per second ─")
	term.keys("s")
	term.shows("sort by")
	term.keys("Home", "Enter")
	term.shows("name ▲")
	term.keys("r")
	term.shows("name ▼")
	term.keys("c")
	term.shows("[ ] network")
	term.keys("End", "Space", "Enter")
	term.shows("bridge")
	term.keys("g")
	term.shows("group by")
	term.keys("Down", "Enter")
	term.shows("shop (2)", "(none) (3)")
	term.keys("Home", "Enter")
	term.shows("project shop")
	term.keys("Escape")
	term.shows("shop (2)")
	term.keys("g", "Home", "Enter")
	term.hides("shop")
	term.keys("/", "w", "*")
	term.shows("filter: w*", "1 of 5 containers")
	term.keys("Enter")
	term.shows("filter w*")
	term.keys("Escape")
	term.hides("filter w*")
	term.keys("z")
	term.shows("─ since ")
	term.keys("z")
	term.hides("─ since ")
	term.keys("?")
	term.shows("the selection follows its container")
	term.keys("Escape")
	term.hides("the selection follows")
	term.keys("C-s")
	term.shows("saved columns, sort and unit to")
	term.keys("q")
	term.shows("ended")

	text, err := os.ReadFile(filepath.Join(term.config, "nettally", "top.yaml"))
	if err != nil || !strings.Contains(string(text), "network") || !strings.Contains(string(text), "sort: name") || !strings.Contains(string(text), "reverse: true") {
		t.Errorf("settings %s, error %v", text, err)
	}
}

// lineOf returns the line of a container.
func lineOf(screen, name string) string {
	for line := range strings.Lines(screen) {
		if f := strings.Fields(strings.TrimLeft(line, " !x▌")); len(f) > 0 && f[0] == name {
			return line
		}
	}
	return ""
}

func fields(screen, name string) []string {
	return strings.Fields(strings.TrimLeft(lineOf(screen, name), " !x▌"))
}

// While paused the table has the numbers of the API, and the details have them to the digit.
func TestTopEqualsJSON(t *testing.T) {
	s, socket := aStage(), socketIn(t)
	play(t, s, socket)
	term := open(t, socket, 140, 60)
	term.shows("live", "web")
	s.move(nil) // from now on nothing changes
	config := filepath.Join(t.TempDir(), "none.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var all exporter.Containers
	if err := json.Unmarshal([]byte(mustOutput(t, "list", "-o", "json", "--config", config, "--socket", socket)), &all); err != nil {
		t.Fatal(err)
	}
	format := func(n uint64) string { return view.Unit{}.Format(float64(n)) }
	var want []string
	for _, c := range all.Containers {
		if c.State == "running" {
			want = append(want, fmt.Sprint(c.Name, " ", format(c.Receive.Bytes), " ", format(c.Transmit.Bytes)))
		}
	}
	table := func(screen string) (got []string) {
		for _, c := range all.Containers {
			if f := fields(screen, c.Name); len(f) > 10 { // name, two rates with units, packets, SYN, two totals with units
				got = append(got, fmt.Sprint(f[0], " ", f[7], " ", f[8], " ", f[9], " ", f[10]))
			}
		}
		return got
	}
	term.until(fmt.Sprint(want), func(screen string) bool { return cmp.Diff(want, table(screen)) == "" })
	term.keys("Space")
	if diff := cmp.Diff(want, table(term.shows("paused"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	term.keys("s", "Home", "Enter", "/", "w", "e", "b", "Enter", "Enter")
	i := slices.IndexFunc(all.Containers, func(c exporter.Container) bool { return c.Name == "web" })
	web := all.Containers[i]
	exact := strconv.FormatUint(web.Receive.Bytes, 10)
	screen := term.shows("interface eth0", "quota monthly", "83.0 MiB of 100 MiB", "77.0 MiB", web.ID, exact)
	if n := strings.Count(screen, exact); n < 3 { // what it has used, on the wire, and on the interface
		t.Errorf("%s is there %d times:\n%s", exact, n, screen)
	}
	for _, n := range []uint64{web.Transmit.Bytes, web.Receive.Packets, web.Transmit.Packets, web.Receive.TCPSYN} {
		if text := strconv.FormatUint(n, 10); !strings.Contains(screen, text) {
			t.Errorf("no %s on the screen:\n%s", text, screen)
		}
	}
}

// Sizes from a small terminal to a large one, also while it runs, with 1,000 containers whose names
// are long, right to left, or full of what a terminal obeys.
func TestTopSizes(t *testing.T) {
	s, socket := &stage{}, socketIn(t)
	for i := range 1000 {
		s.put(actor(i+100, fmt.Sprintf("container-%03d", i), uint64(i)<<20, uint64(i)<<10))
	}
	for i, name := range []string{"a" + strings.Repeat("n", 199), "aא" + strings.Repeat("שלום", 49), "a" + hostile, "a" + strings.Repeat("東", 199), "ae\u0301" + strings.Repeat("\u0301", 197)} {
		s.put(actor(i+1, name, 1<<50, 1<<40))
	}
	s.move(func(turn int, c []usage.Container) {
		for i := range c {
			use(&c[i], uint64(i*turn%1000), 100)
		}
	})
	play(t, s, socket)
	term := open(t, socket, 80, 24)
	term.shows("live", "container-")
	for _, size := range [][2]int{{80, 24}, {300, 100}, {132, 43}, {40, 10}, {80, 24}} {
		term.tmux("resize-window", "-x", strconv.Itoa(size[0]), "-y", strconv.Itoa(size[1]))
		term.keys("Home", "s", "Home", "Enter", "Home")
		rows := size[1] - 5
		screen := term.until(fmt.Sprintf("%d rows at %v", rows, size), func(screen string) bool {
			return strings.Contains(screen, "live") && strings.Contains(screen, "name ▲") && strings.Contains(screen, fmt.Sprintf("1-%d of 1005", rows)) &&
				strings.Count(screen, "\n") == size[1]
		})
		lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
		for _, line := range lines {
			if n := view.Width(line); n > size[0] {
				t.Errorf("%d columns at %v: %q", n, size, line)
			}
			if i := strings.IndexFunc(line, func(r rune) bool {
				return unicode.In(r, unicode.Cc, unicode.Cf) || r == 'F' && strings.HasPrefix(line, forged)
			}); i >= 0 {
				t.Errorf("at %v: %q", size, line)
			}
		}
		// Whatever a name is made of, the columns behind it are below those of the sum.
		for _, line := range lines[4:9] {
			if size[0] >= 80 && view.Width(before(line, " PiB")) != view.Width(before(lines[3], " PiB")) {
				t.Errorf("at %v a line is not below the others:\n%s", size, screen)
				break
			}
		}
	}
	term.keys("End")
	term.shows("container-999", "1005 of 1005")
	term.keys("q")
	term.shows("ended")
}

func before(line, text string) string {
	start, _, _ := strings.Cut(line, text)
	return start
}

// Where there is no UTF-8 and there are no colors, there is neither.
func TestTopPlain(t *testing.T) {
	s, socket := aStage(), socketIn(t)
	s.put(actor(50, "東京-ü", 1, 1))
	play(t, s, socket)
	term := open(t, socket, 120, 30, "LC_CTYPE=C", "NO_COLOR=1")
	term.shows("live", "??-?", "web")
	term.keys("j", "s")
	term.shows("sort by")
	term.keys("s", "?")
	term.shows("Ctrl-S")
	term.keys("x", "Home", "Enter")
	term.shows("interface eth0")
	screen := term.tmux("capture-pane", "-p", "-e")
	for _, r := range screen {
		if r > unicode.MaxASCII {
			t.Fatalf("%U on the screen:\n%s", r, screen)
		}
	}
	term.keys("Escape")
	term.shows("per second")
	for sequence := range strings.SplitSeq(term.tmux("capture-pane", "-p", "-e"), "\x1b[") {
		code, _, ok := strings.Cut(sequence, "m")
		if n, err := strconv.Atoi(code); ok && err == nil && n >= 30 && n != 39 && n != 49 {
			t.Errorf("color %d on the screen", n)
		}
	}
}

// A daemon that ends and comes back is no reason to end, and makes no spike.
func TestTopReconnects(t *testing.T) {
	s, socket := &stage{}, socketIn(t)
	s.put(actor(1, "web", 1<<30, 0))
	s.move(func(_ int, c []usage.Container) { use(&c[0], 100_000, 0) })
	end := play(t, s, socket)
	term := open(t, socket, 140, 24)
	term.shows("live", "web", " KiB ")
	end()
	term.shows("no connection since", "trying", "nobody answers")
	play(t, s, socket)
	for range 3 { // a reading is 100 KB, over a second or more
		screen := term.shows("live", "web")
		if f := fields(screen, "web"); len(f) < 3 || f[2] != "KiB" && f[2] != "B" {
			t.Fatalf("a spike: %q", f)
		}
	}
	term.hides("no connection")

	// Whoever ends it gets the terminal back.
	pane := strings.TrimSpace(term.tmux("display-message", "-p", "#{pane_pid}"))
	children, err := os.ReadFile(filepath.Join("/proc", pane, "task", pane, "children"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if screen := term.shows("ended"); strings.Contains(screen, "web") {
		t.Errorf("the table is still there:\n%s", screen)
	}
}

// For scripts there is one reading, or one per line.
func TestTopForScripts(t *testing.T) {
	s, socket := aStage(), socketIn(t)
	play(t, s, socket)
	config := filepath.Join(t.TempDir(), "none.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--config", config, "--socket", socket}
	table := mustOutput(t, append([]string{"top", "--once"}, flags...)...)
	if lines := strings.Split(table, "\n"); len(lines) != 7 || !strings.HasPrefix(lines[0], "NAME") || !strings.HasPrefix(lines[1], "web ") || !strings.Contains(lines[1], "83%") {
		t.Errorf("a reading:\n%s", table)
	}
	var reading topReading
	if err := json.Unmarshal([]byte(mustOutput(t, append([]string{"top", "--once", "-o", "json"}, flags...)...)), &reading); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(reading.Containers, func(c topContainer) bool { return c.Name == "web" })
	web := reading.Containers[i]
	// A reading moves it by 500,000 bytes, over a second as the machine has it.
	if rate := web.Receive.BytesPerSecond; rate == nil || *rate < 50_000 || *rate > 1_000_000 {
		t.Errorf("%s: rate %v", web.Name, rate)
	}
	if len(reading.Containers) != 6 || web.Receive.Bytes < 123_456_789 || web.Quota == nil || web.Quota.Ratio != 0.83 || reading.Receive.Bytes < web.Receive.Bytes {
		t.Errorf("%+v", reading)
	}
	old := reading.Containers[slices.IndexFunc(reading.Containers, func(c topContainer) bool { return c.Name == "old-job" })]
	if old.State != "stopped" || old.Quota != nil || old.Receive.Bytes != 1<<30 {
		t.Errorf("%+v", old)
	}

	ctx, cancel := context.WithCancel(t.Context())
	lines := &lineCounter{wanted: 3, enough: cancel}
	root := newRoot(lines, t.Output())
	root.SetArgs(append([]string{"top", "-o", "json"}, flags...))
	if err := root.ExecuteContext(ctx); err != nil {
		t.Errorf("ended by its context: %v", err)
	}
	for line := range strings.Lines(lines.text.String()) {
		if err := json.Unmarshal([]byte(line), &reading); err != nil || len(reading.Containers) != 6 {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// lineCounter calls enough after some lines.
type lineCounter struct {
	text   strings.Builder
	wanted int
	enough func()
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.text.Write(p)
	if strings.Count(c.text.String(), "\n") >= c.wanted {
		c.enough()
	}
	return len(p), nil
}

// Elsewhere is reached by TLS, with a certificate of its own and a password.
func TestTopElsewhere(t *testing.T) {
	e, hub := perform(t, aStage())
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = hub.Run(ctx) })
	defer running.Wait()
	defer cancel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "admin" || password != "a:b" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		e.Handler().ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer server.Close()
	defer cancel()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(server), 0o600); err != nil {
		t.Fatal(err)
	}
	table := mustOutput(t, "top", "--once", "--url", server.URL, "--cacert", ca, "-u", "admin:a:b")
	if !strings.Contains(table, "web ") {
		t.Errorf("a reading:\n%s", table)
	}
	for want, args := range map[string][]string{
		"401":                    {"--cacert", ca, "-u", "admin:wrong"},
		"certificate":            {"-u", "admin:a:b"},
		"expected USER:PASSWORD": {"--cacert", ca, "-u", "admin"},
	} {
		out, err := output(t, append([]string{"top", "--once", "--url", server.URL}, args...)...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "a:b") {
			t.Errorf("%q: %s, error %v, want %s", args, out, err, want)
		}
	}
}

func TestTopMisuse(t *testing.T) {
	for want, args := range map[string][]string{
		"use --once or -o json":        nil,
		"expected table or json":       {"-o", "yaml"},
		"expected whole seconds":       {"--interval", "1500ms"},
		"whole seconds from 1s to 60s": {"--interval", "2m"},
		"--cacert: it is of use":       {"--cacert", "x"},
		"--user: it is of use":         {"-u", "x:y"},
		"parse URL":                    {"--once", "--url", "ftp://x"},
		"nobody answers":               {"--once", "--socket", "/nonexistent", "--config", "/dev/null"},
	} {
		if _, err := output(t, append([]string{"top"}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
	}
}

// pemOf returns the certificate of a server.
func pemOf(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}
