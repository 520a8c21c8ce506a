// SPDX-License-Identifier: Apache-2.0

package top

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/view"
)

// hostile is a text as a tenant may put it where others read it.
const hostile = "\x1b[31m\u202e\nFORGED\x9b\u009b\x7f\u200b\u2028\u2066\t\x1b]0;title\x07"

var start = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

// screen is a model that a test plays events and keys to.
type screen struct {
	*model
	t      *testing.T
	clock  time.Time
	boot   int64
	wanted chan string
	totals map[string]uint64 // received by each container, and half of it transmitted
}

func newScreen(t *testing.T, width, height int, change ...func(*Options)) *screen {
	s := &screen{t: t, clock: start, boot: 1000, wanted: make(chan string, 1), totals: map[string]uint64{}}
	o := Options{Interval: time.Second, Settings: Defaults(), Now: func() time.Time { return s.clock }}
	for _, c := range change {
		c(&o)
	}
	s.model = newModel(o, s.wanted)
	s.Update(tea.WindowSizeMsg{Width: width, Height: height})
	return s
}

func (s *screen) totalsOf(id string) (receive, transmit exporter.StreamCounts) {
	n := s.totals[id]
	receive.Bytes, receive.Packets, receive.TCPSYN = n, n/1000, n/10_000
	transmit.Bytes, transmit.Packets = n/2, n/2000
	return receive, transmit
}

func (s *screen) container(id string, change ...func(*exporter.StreamContainer)) exporter.StreamContainer {
	c := exporter.StreamContainer{ID: id, Name: "name-" + id, State: "running", CountedBy: "interfaces", Accounted: true, StartedAt: &start, Recalled: true}
	c.Receive, c.Transmit = s.totalsOf(id)
	for _, f := range change {
		f(&c)
	}
	return c
}

// there tells of containers, all there are.
func (s *screen) there(all ...exporter.StreamContainer) {
	e := &exporter.StreamContainers{Replace: true, Source: "bpf", Containers: all}
	e.BootMS, e.TakenAt = s.boot, s.clock
	s.Update(eventMsg{e})
}

// later lets a second go by in which containers receive bytes.
func (s *screen) later(received map[string]uint64) {
	s.clock, s.boot = s.clock.Add(time.Second), s.boot+1000
	e := &exporter.StreamSample{}
	e.BootMS, e.TakenAt = s.boot, s.clock
	for id, n := range received {
		s.totals[id] += n
		r, t := s.totalsOf(id)
		e.Containers = append(e.Containers, exporter.StreamTotal{ID: id, Receive: r, Transmit: t})
	}
	s.Update(eventMsg{e})
}

// keys are typed: names of keys, or single characters.
func (s *screen) keys(names ...string) tea.Cmd {
	var cmd tea.Cmd
	special := map[string]tea.Key{
		"up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown}, "pgup": {Code: tea.KeyPgUp}, "pgdown": {Code: tea.KeyPgDown},
		"home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd}, "enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape},
		"space": {Code: tea.KeySpace, Text: " "}, "backspace": {Code: tea.KeyBackspace},
		"ctrl+s": {Code: 's', Mod: tea.ModCtrl}, "ctrl+c": {Code: 'c', Mod: tea.ModCtrl}, "ctrl+u": {Code: 'u', Mod: tea.ModCtrl},
		"ctrl+w": {Code: 'w', Mod: tea.ModCtrl}, "ctrl+l": {Code: 'l', Mod: tea.ModCtrl},
	}
	for _, name := range names {
		key, ok := special[name]
		if !ok {
			key = tea.Key{Code: []rune(name)[0], Text: name}
		}
		_, cmd = s.Update(tea.KeyPressMsg(key))
	}
	return cmd
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// lines are what is on the screen, without colors.
func (s *screen) lines() []string {
	return strings.Split(escapes.ReplaceAllString(s.View().Content, ""), "\n")
}

func (s *screen) text() string { return strings.Join(s.lines(), "\n") }

// names are the rows that are on the screen.
func (s *screen) names() (names []string) {
	for _, l := range s.lines()[above:] {
		if fields := strings.Fields(strings.TrimLeft(l, " !x▌>")); len(fields) > 2 && strings.HasPrefix(fields[0], "name-") {
			names = append(names, strings.TrimPrefix(fields[0], "name-"))
		}
	}
	return names
}

func (s *screen) has(texts ...string) {
	s.t.Helper()
	all := s.text()
	for _, text := range texts {
		if !strings.Contains(all, text) {
			s.t.Errorf("no %q on the screen:\n%s", text, all)
		}
	}
}

func (s *screen) hasNot(texts ...string) {
	s.t.Helper()
	all := s.text()
	for _, text := range texts {
		if strings.Contains(all, text) {
			s.t.Errorf("%q on the screen:\n%s", text, all)
		}
	}
}

func (s *screen) order(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.names()); diff != "" {
		s.t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestTable(t *testing.T) {
	s := newScreen(t, 120, 24)
	s.totals["a"], s.totals["b"] = 5<<20, 1<<20
	s.there(s.container("a"), s.container("b"))
	s.has("2 containers", "live", "KiB", "every 1s", "name-a", "5.00 MiB", "2.50 MiB", "–") // no rate yet
	s.later(map[string]uint64{"a": 3 << 10, "b": 7 << 10})
	s.order("b", "a")
	s.has("7.00 KiB", "3.50 KiB", "10.0 KiB", "6.01 MiB", "running")
	s.hasNot("–")
}

func TestSelectionFollows(t *testing.T) {
	s := newScreen(t, 80, 12)
	var all []exporter.StreamContainer
	for i := range 30 {
		all = append(all, s.container(fmt.Sprintf("%02d", i)))
	}
	s.there(all...)
	s.later(map[string]uint64{"00": 9000, "01": 8000})
	s.keys("j", "j")
	if s.cursor != "01" {
		t.Fatalf("selected %q", s.cursor)
	}
	for range 12 { // its smoothed rate falls, and it moves out of the first page
		s.later(map[string]uint64{"20": 50_000, "21": 40_000, "22": 30_000, "23": 20_000, "24": 10_000, "25": 9000, "26": 9000, "27": 9000, "28": 9000})
	}
	if s.cursor != "01" || !slices.Contains(s.names(), "01") {
		t.Errorf("selected %q, on the screen are %v", s.cursor, s.names())
	}
	if i := slices.IndexFunc(s.rows, func(r view.Row) bool { return r.Key == "01" }); i < 7 {
		t.Errorf("it is row %d: the test moved nothing", i)
	}
	s.keys("esc")
	if s.picked || s.names()[0] != "20" {
		t.Errorf("after Esc: %q, %v", s.cursor, s.names())
	}
	// One that goes leaves the selection where it was.
	s.keys("j", "j")
	selected := s.cursor
	s.Update(eventMsg{&exporter.StreamRemoved{IDs: []string{selected}}})
	s.later(nil)
	if s.cursor == selected || !s.picked || s.at != 1 {
		t.Errorf("selected %q, at %d", s.cursor, s.at)
	}
}

func TestRowsStayInPlace(t *testing.T) {
	s := newScreen(t, 80, 24)
	s.there(s.container("a"), s.container("b"))
	s.later(map[string]uint64{"a": 1000})
	s.order("a", "b")
	s.later(map[string]uint64{"b": 900_000})
	s.order("a", "b")
	s.later(map[string]uint64{"b": 900_000})
	s.order("a", "b")
	s.later(map[string]uint64{"b": 900_000})
	s.order("b", "a") // 3 s after the last sorting
	s.later(map[string]uint64{"a": 90_000_000})
	s.order("b", "a")
	s.keys("r", "r") // a key sorts at once
	s.order("a", "b")
}

func TestKeys(t *testing.T) {
	s := newScreen(t, 120, 24)
	ended := func(c *exporter.StreamContainer) { c.State, c.StoppedAt = "stopped", &start }
	project := func(c *exporter.StreamContainer) {
		c.Namespace, c.Pod, c.Labels = "prod", "pod-0", map[string]string{view.ProjectLabel: "shop", "tier": "front"}
	}
	s.totals["a"], s.totals["b"], s.totals["c"], s.totals["d"] = 1<<20, 2<<20, 3<<20, 4<<20
	s.there(s.container("a"), s.container("b", project), s.container("c"), s.container("d", ended))
	s.later(map[string]uint64{"a": 3 << 10, "b": 2 << 10, "c": 1 << 10})
	first := "prod/pod-0/name-b"
	s.has("3 containers, 1 ended", first)
	s.hasNot("name-d")

	s.keys("a")
	s.has("4 containers", "name-d", "stopped")
	s.keys("a")
	s.hasNot("name-d")

	s.keys("u")
	s.has(" kB ", "3.07 kB")
	s.keys("u")
	s.has(" kbit ", "24.6 kbit")
	s.keys("u")
	s.has(" Kibit ", "24.0 Kibit")
	s.keys("u")
	s.has(" KiB ", "3.00 KiB")

	s.keys("t")
	s.has(" per second ")
	s.hasNot(" total ")
	s.keys("t")
	s.has(" total ")
	s.hasNot(" per second ", "3.00 KiB")
	s.keys("t")
	s.has(" total ", " per second ")

	s.keys("s")
	s.has("sort by", "received in total")
	s.keys("down", "down", "enter") // from receive-rate to received
	s.hasNot("sort by")
	if s.settings.Sort != view.ReceiveTotal {
		t.Errorf("sorted by %s", s.settings.Sort)
	}
	if got := s.rows[0].Key; got != "c" {
		t.Errorf("first is %s", got)
	}
	s.keys("r")
	if got := s.rows[0].Key; got != "a" {
		t.Errorf("in reverse, first is %s", got)
	}
	s.keys("r", "s", "home", "enter")
	if s.settings.Sort != view.Name || s.rows[0].Key != "a" {
		t.Errorf("sorted by %s, first is %s", s.settings.Sort, s.rows[0].Key)
	}

	s.keys("c")
	s.has("[x] transmit-rate", "[ ] network")
	s.keys("j", "space", "enter")
	if slices.Contains(s.settings.Columns, "transmit-rate") {
		t.Errorf("columns %v", s.settings.Columns)
	}
	s.keys("c", "j", "space", "esc")
	if diff := cmp.Diff(Defaults().Columns, s.settings.Columns); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}

	for i, want := range []string{"shop (1)", "prod (1)", "prod/pod-0 (1)"} {
		s.keys("g", "home")
		for range i + 1 {
			s.keys("down")
		}
		s.keys("enter")
		s.has(want, "(none) (2)")
	}
	s.keys("g", "end", "enter", "t", "i", "e", "r", "enter")
	s.has("front (1)", "label:tier")
	s.keys("home")
	s.has("▌ (none) (2)") // also one without a name is selected
	s.later(nil)
	s.has("▌ (none) (2)")
	s.keys("end", "enter") // into the last group
	if s.within == nil || *s.within != "front" {
		t.Fatalf("within %v", s.within)
	}
	s.has(first, "label:tier front", "1 of 3 containers")
	s.keys("esc")
	s.has("front (1)")
	s.keys("g", "home", "enter")
	s.has(first)

	s.keys("/", "n", "a", "m", "e", "-", "[")
	s.has("filter: name-[", "is not a glob")
	s.keys("enter") // is not taken
	s.keys("backspace", "b", "enter")
	s.has("filter name-b", "1 of 3 containers", "all that match")
	s.hasNot("name-a")
	s.keys("/", "ctrl+u", "t", "i", "e", "r", "=", "f", "*", "enter")
	s.has("filter tier=f*", first)
	s.hasNot("name-a")
	s.keys("/", "x", "y", "z")
	s.has("no container matches")
	s.keys("esc") // is what it was
	s.has("filter tier=f*", first)
	s.keys("esc")
	s.has("name-a", "name-c")

	s.keys("z")
	s.later(map[string]uint64{"a": 512})
	s.has("since 10:00:02")
	if got := s.sum.Receive.Total.Bytes; got != 512 {
		t.Errorf("counted %d bytes from now, want 512", got)
	}
	s.keys("z")
	s.hasNot("since ")

	s.keys("?")
	s.has("the selection follows its container", "Ctrl-S")
	s.keys("down", "x")
	s.hasNot("Ctrl-S")

	for name, quits := range map[string]bool{"q": true, "ctrl+c": true, "x": false} {
		if cmd := s.keys(name); (cmd != nil) != quits {
			t.Errorf("%s quits: %t", name, cmd != nil)
		}
	}
}

func TestMoving(t *testing.T) {
	s := newScreen(t, 80, 10) // five rows
	var all []exporter.StreamContainer
	for i := range 12 {
		all = append(all, s.container(fmt.Sprintf("%02d", i)))
	}
	s.there(all...)
	s.keys("s", "home", "enter")
	for _, test := range []struct {
		key    string
		cursor string
		top    string
	}{
		{"k", "00", "00"}, {"down", "01", "00"}, {"j", "02", "00"}, {"up", "01", "00"}, {"end", "11", "07"}, {"j", "11", "07"}, {"home", "00", "00"},
		{"pgdown", "05", "01"}, {"pgdown", "10", "06"}, {"pgdown", "11", "07"}, {"pgup", "06", "06"}, {"G", "11", "07"}, {"k", "10", "07"},
	} {
		s.keys(test.key)
		if got := s.names(); s.cursor != test.cursor || len(got) != 5 || got[0] != test.top {
			t.Errorf("%s: selected %s, rows %v, want %s and %s first", test.key, s.cursor, got, test.cursor, test.top)
		}
	}
	s.has("8-12 of 12")
	s.Update(tea.WindowSizeMsg{Width: 80, Height: 8})
	if got := s.names(); !slices.Contains(got, s.cursor) {
		t.Errorf("after a resize %s is not in %v", s.cursor, got)
	}
}

func TestPause(t *testing.T) {
	s := newScreen(t, 120, 24)
	s.there(s.container("a"))
	s.later(map[string]uint64{"a": 1000})
	s.keys("space")
	s.has("paused")
	before := s.text()
	for range 5 {
		s.later(map[string]uint64{"a": 7_777_777})
	}
	if diff := cmp.Diff(before, s.text()); diff != "" {
		t.Errorf("changes while paused (-before +after):\n%s", diff)
	}
	s.keys("s", "enter", "u", "z") // these still work, but for z
	s.has("1.00 kB", "paused: Space goes on")
	s.keys("space")
	s.has("live", "7.78 MB", "38.9 MB")
}

func TestReconnect(t *testing.T) {
	s := newScreen(t, 120, 24)
	s.there(s.container("a"))
	s.later(map[string]uint64{"a": 1 << 10})
	s.Update(lostMsg{errors.New("nobody answers\x1b[2J")})
	s.Update(lostMsg{errors.New("nobody answers\x1b[2J")})
	s.has("no connection since 10:00:01, trying", "nobody answers\uFFFD[2J", "1.00 KiB")
	s.clock, s.boot, s.totals["a"] = s.clock.Add(20*time.Second), s.boot+20_000, 21<<10 // as much a second as before
	s.there(s.container("a"))
	s.has("live", "1.00 KiB", "21.0 KiB")
	s.hasNot("no connection")
	s.later(map[string]uint64{"a": 1 << 10})
	s.has("1.00 KiB", "22.0 KiB")
	// The daemon's host has booted: there is no rate rather than a wrong one.
	s.boot, s.totals["a"] = 500, 30<<10
	s.there(s.container("a"))
	s.has("–", "30.0 KiB")
}

// A daemon that hangs is not live.
func TestSilence(t *testing.T) {
	s := newScreen(t, 120, 24)
	s.there(s.container("a"))
	s.later(map[string]uint64{"a": 1 << 10})
	s.clock = s.clock.Add(4 * time.Second)
	s.Update(tickMsg{})
	s.has("live")
	s.clock = s.clock.Add(time.Second)
	s.Update(tickMsg{})
	s.has("no reading for 5s", "1.00 KiB")
	s.later(nil)
	s.has("live")
}

func TestAlerts(t *testing.T) {
	s := newScreen(t, 120, 24)
	s.there()
	s.has("0 containers", "no containers")
	s.Update(eventMsg{&exporter.Alert{ID: "1", State: "firing"}})
	s.Update(eventMsg{&exporter.Alert{ID: "2", State: "firing"}})
	s.has("2 alerts")
	s.Update(eventMsg{&exporter.Alert{ID: "1", State: "resolved"}})
	s.has("1 alert")
	s.there()
	s.hasNot("alert")
}

func TestQuotaAndStates(t *testing.T) {
	s := newScreen(t, 160, 24)
	s.there(s.container("a"), s.container("b"), s.container("c", func(c *exporter.StreamContainer) {
		c.Accounted, c.Reason, c.CountedBy = false, "attach_failed", ""
	}), s.container("d", func(c *exporter.StreamContainer) { c.Reason = "shadowed" }))
	s.Update(eventMsg{&exporter.StreamQuota{Foremost: map[string]exporter.StreamForemost{"a": {Quota: "q", Ratio: 0.999}, "b": {Quota: "q", Ratio: 1.2}}}})
	s.later(nil)
	s.has(" 99%", "120%", "!name-c", "not counted: attach failed", "counted in part: shadowed", "–")
}

// TCP connections have columns, and a line in the details.
func TestConnections(t *testing.T) {
	s := newScreen(t, 160, 40, func(o *Options) {
		o.Settings.Columns, o.Settings.Sort = []string{"receive-rate", "connections", "failures"}, view.FailedRate
	})
	tell := func(a, b uint64) {
		with := func(n uint64) func(*exporter.StreamContainer) {
			return func(c *exporter.StreamContainer) {
				c.TCP = &exporter.StreamTCP{Connects: 7 * n, Accepts: 10 * n, ConnectFailures: 3 * n}
			}
		}
		s.there(s.container("a", with(a)), s.container("b", with(b)), s.container("c"))
		s.clock, s.boot = s.clock.Add(time.Second), s.boot+1000
	}
	tell(1000, 1000)
	tell(1001, 1002)
	rows := func() (rows []string) {
		for _, name := range []string{"name-b", "name-a", "name-c"} { // as they are sorted
			for _, l := range s.lines() {
				if strings.Contains(l, name) {
					rows = append(rows, strings.Join(strings.Fields(l), " "))
				}
			}
		}
		return rows
	}
	if diff := cmp.Diff([]string{"name-b 0 B 34 6.0", "name-a 0 B 17 3.0", "name-c 0 B – –"}, rows()); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
	s.keys("t", "t")
	s.has("17.0k", "3.01k")
	s.keys("t", "home", "enter")
	s.has("34/s opened", "6.0/s failed")
}

// Whatever the size, lines are no wider than the screen, and no more than it has.
func TestSizesAndHostileTexts(t *testing.T) {
	texts := []string{hostile, strings.Repeat("n", 200), strings.Repeat("東", 200), "שלום-עולם", "e" + strings.Repeat("\u0301", 300), "", "\xff\xfe", "👍👩‍👩‍👧"}
	for _, ascii := range []bool{false, true} {
		for _, size := range [][2]int{{1, 1}, {20, 5}, {30, 8}, {40, 10}, {80, 24}, {81, 25}, {120, 40}, {200, 50}, {300, 100}} {
			s := newScreen(t, size[0], size[1], func(o *Options) { o.ASCII, o.Where = ascii, hostile })
			var all []exporter.StreamContainer
			for i, text := range texts {
				all = append(all, s.container(fmt.Sprint(i), func(c *exporter.StreamContainer) {
					c.Name, c.Image, c.Namespace, c.Network, c.Cgroup, c.User = text, text, text, text, text, text
					c.Pod, c.Labels, c.Reason = text, map[string]string{text: text, view.ProjectLabel: text}, text
				}))
			}
			for i := range 150 {
				all = append(all, s.container(fmt.Sprint("more", i)))
			}
			s.there(all...)
			s.later(map[string]uint64{"0": 1 << 40, "1": 3})
			s.tame("table")
			for _, keys := range [][]string{{"j"}, {"end"}, {"s"}, {"esc", "c"}, {"esc", "g", "j", "enter"}, {"enter"}, {"esc", "g", "home", "enter"},
				{"?"}, {"end"}, {"esc", "/", "é", "*"}, {"enter", "esc", "home", "enter"}} {
				s.keys(keys...)
				s.tame(strings.Join(keys, " "))
			}
			s.Update(tea.PasteMsg{Content: hostile})
			s.keys("esc", "/")
			s.Update(tea.PasteMsg{Content: hostile + strings.Repeat("x", 400)})
			s.tame("pasted")
			s.Update(lostMsg{errors.New(hostile)})
			s.keys("esc")
			s.tame("lost")
		}
	}
}

// tame fails unless a screen is as large as it may be and shows what can be shown.
func (s *screen) tame(what string) {
	s.t.Helper()
	lines := s.lines()
	if len(lines) > s.height {
		s.t.Errorf("%s at %dx%d: %d lines", what, s.width, s.height, len(lines))
	}
	for _, l := range lines {
		if n := view.Width(l); n > s.width {
			s.t.Errorf("%s at %dx%d: %d columns: %q", what, s.width, s.height, n, l)
		}
		for _, r := range l {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || s.signs.ascii && r > unicode.MaxASCII {
				s.t.Errorf("%s at %dx%d: %U in %q", what, s.width, s.height, r, l)
				return
			}
		}
	}
}

func TestDetails(t *testing.T) {
	s := newScreen(t, 100, 100)
	id := strings.Repeat("ab", 32)
	s.totals[id] = 1<<60 + 12345
	s.there(s.container(id, func(c *exporter.StreamContainer) {
		c.Name, c.Labels = "web", map[string]string{"tier": hostile}
		c.CountedBy = "interfaces"
	}))
	s.later(map[string]uint64{id: 2048})
	s.keys("enter")
	if got := <-s.wanted; got != id {
		t.Errorf("asks for %q", got)
	}
	s.has("web", id, "1152921504606861369", "2.00 KiB/s", "asking for more")
	lost, none := uint64(7), uint64(0)
	ends := start.AddDate(0, 1, 0)
	projected := 3e9
	s.Update(detailsMsg{
		id: id,
		container: exporter.Container{
			Interfaces: []exporter.Interface{{
				Name: "eth0", HostInterface: "veth1" + hostile, Hook: "tcx", At: "host",
				Receive: exporter.Counts{Volume: exporter.Volume{Bytes: 111222333}, InterfaceBytes: 444555666, SeededBytes: 777, DroppedPackets: &lost, ErrorPackets: &none, TCPRST: 31,
					Protocols: exporter.ByProtocol{UDP: exporter.Volume{Bytes: 909}}, Families: exporter.ByFamily{IPv6: exporter.Volume{Bytes: 808}}},
			}},
			IP:  &exporter.IP{Receive: exporter.IPCounts{Volume: exporter.Volume{Bytes: 5151}}},
			TCP: &exporter.TCP{ConnectAttempts: 41, Connects: new(uint64(40)), ConnectFailures: new(uint64(1)), Accepts: 12},
		},
		quotas: []exporter.Quota{{Quota: "monthly", Key: hostile, Used: 2 << 30, Limit: 4 << 30, Unit: "bytes", Ratio: 0.5, PeriodEnd: &ends, Projected: &projected,
			Levels: []exporter.QuotaLevel{{Level: "50", Firing: true}}}},
		history: []exporter.HistoryRow{{Start: start, Receive: exporter.HistoryCounts{Bytes: 6 << 20}}},
	})
	s.has("interface eth0", "counted by tcx in the host", "111222333", "444555666", "seeded bytes", "777", "dropped packets", "error packets", "31", "909", "808",
		"by its cgroup", "5151", "attempts to open", "41", "refused or failed", "quota monthly", "2.00 GiB of 4.00 GiB", "50%", "projected", "2.79 GiB", "firing",
		"2026-11-02 10:00", "6.00 MiB", "██")
	s.hasNot("asking")
	s.tame("details")
	s.Update(detailsMsg{id: "another", err: errors.New("wrong")})
	s.hasNot("wrong")
	s.keys("u")
	s.has("2.05 kB/s", "6.29 MB")
	s.Update(tea.WindowSizeMsg{Width: 80, Height: 20})
	s.has("1-18 of")
	s.keys("end")
	s.has("██")
	s.Update(detailsMsg{id: id, err: errors.New("404: gone")})
	s.has("404: gone")
	s.keys("esc")
	s.has("per second")
	if s.details != nil {
		t.Error("the details are still there")
	}
}

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "nettally", "top.yaml")
	if got, err := LoadSettings(path); err != nil || cmp.Diff(Defaults(), got) != "" {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	s := newScreen(t, 80, 24, func(o *Options) { o.Path = path })
	s.there(s.container("a"))
	s.keys("u", "u", "s", "home", "down", "down", "enter", "r", "c", "space", "esc", "ctrl+s")
	s.has("saved columns")
	want := Settings{Columns: Defaults().Columns[1:], Sort: view.TransmitRate, Reverse: true, Unit: view.Unit{Bits: true, SI: true}}
	got, err := LoadSettings(path)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	if left, _ := filepath.Glob(filepath.Dir(path) + "/.top-*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	for text, wants := range map[string]string{
		"sort: size\n":             "sort: expected one of",
		"unit: nibbles\n":          "unit: expected bytes",
		"columns: [name]\n":        `columns: "name" is none`,
		"color: red\n":             "field color not found",
		"columns: {a: b}\n":        "cannot unmarshal",
		"sort: [\n":                "yaml",
		"sort: \"\x1b[31m\"\n":     "yaml",
		"unit: bits\nunit: bits\n": "already",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := LoadSettings(path)
		if err == nil || !strings.Contains(err.Error(), wants) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v, want %q", text, err, wants)
		}
		if cmp.Diff(Defaults(), got) != "" {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if err := os.WriteFile(path, []byte("unit: bits\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadSettings(path); err != nil || got.Unit.String() != "bits" || got.Sort != view.ReceiveRate || len(got.Columns) != len(Defaults().Columns) {
		t.Errorf("%+v, error %v", got, err)
	}
	// What can't be saved says so, and leaves what there was.
	s.options.Path = "/proc/nettally/top.yaml"
	s.keys("ctrl+s")
	s.has("save settings: ")
	s.options.Path = ""
	s.keys("ctrl+s")
	s.has("set HOME")
}

// With 1,000 containers a second's work is far less than a second.
func BenchmarkThousandContainers(b *testing.B) {
	s := newScreen(nil, 200, 50)
	var all []exporter.StreamContainer
	received := map[string]uint64{}
	for i := range 1000 {
		id := fmt.Sprintf("%064x", i)
		all, received[id] = append(all, s.container(id)), uint64(i)
	}
	s.there(all...)
	for b.Loop() {
		s.later(received)
		_ = s.View()
	}
}
