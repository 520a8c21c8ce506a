// SPDX-License-Identifier: Apache-2.0

package wallclock

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Each change is logged once, and shown.
func TestClockTells(t *testing.T) {
	var log bytes.Buffer
	r := Reading{Wall: noon, Boot: time.Hour, BootID: 1}
	c := New(func() Reading { return r }, slog.New(slog.NewTextHandler(&log, nil)))
	c.Restore(saved, Mark{})
	for _, s := range []struct {
		off          time.Duration
		boot         int64
		metric, said string
	}{
		{0, 1, `reason=""} 1`, ""},
		{-day, 1, `reason="behind"} 0`, "the clock is behind the last save"},
		{day, 1, `reason="ahead"} 0`, "the clock jumped ahead"},
		{0, 1, `reason=""} 1`, "the clock is trusted again"},
		{day, 2, `reason="unproven"} 0`, "once an NTP client vouches for it"},
	} {
		log.Reset()
		r.Wall, r.BootID = noon.Add(s.off), s.boot
		for range 3 {
			c.Look()
		}
		if got := log.String(); s.said == "" && got != "" || strings.Count(got, "\n") > 1 || !strings.Contains(got, s.said) {
			t.Errorf("off by %s: logged %q", s.off, got)
		}
		const help = "# HELP nettally_clock_trusted 1 while the host's wall clock agrees with the last save and the time since boot; " +
			"else 0 and the reason: unproven, ahead or behind.\n# TYPE nettally_clock_trusted gauge\n"
		if err := testutil.CollectAndCompare(c, strings.NewReader(help+"nettally_clock_trusted{"+s.metric+"\n")); err != nil {
			t.Error(err)
		}
		same(t, c.Distrust() == "", strings.HasSuffix(s.metric, "1"))
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// What the kernel stamped with a clock that is wrong, or was, is as old as that.
func TestBegan(t *testing.T) {
	r := Reading{Wall: noon.Add(-year), Boot: 5 * time.Minute, BootID: 2}
	c := New(func() Reading { return r }, slog.New(slog.DiscardHandler))
	c.Restore(saved, Mark{})
	same(t, c.Began(r.Wall.Add(-time.Minute)), noon.Add(4*time.Minute))
	same(t, c.Began(r.Wall.Add(time.Hour)), noon.Add(5*time.Minute))
	r.Wall, r.Synced = noon.Add(day), true
	same(t, c.Began(r.Wall.Add(-time.Minute)), noon.Add(day-time.Minute))
	same(t, c.Began(noon.Add(-year)), r.Wall.Add(-5*time.Minute)) // the boot
	same(t, c.Began(noon.Add(year)), r.Wall)
}

func TestSteadily(t *testing.T) {
	now := time.Now()
	if age := time.Since(Steadily(now.Round(0).Add(-time.Second))); age < time.Second || age > time.Minute {
		t.Errorf("a second is %s", age)
	}
	if age := time.Since(Steadily(now.AddDate(-10, 0, 0))); age < SinceBoot()-time.Minute || age > SinceBoot() {
		t.Errorf("older than the boot: %s, and that was %s ago", age, SinceBoot())
	}
	if age := time.Since(Steadily(now.AddDate(10, 0, 0))); age < 0 || age > time.Minute {
		t.Errorf("in ten years: %s", age)
	}
}

// The host's clocks are read, and those of two boots would differ.
func TestHost(t *testing.T) {
	read, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	first, second := read(), read()
	if first.BootID <= 0 || first.BootID != second.BootID || second.Boot < first.Boot || first.Boot <= 0 {
		t.Errorf("%+v, then %+v", first, second)
	}
	var g Guard
	g.Look(first)
	same(t, g.Look(second), Agrees)
}
