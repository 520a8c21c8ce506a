// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// While the host's clock is not trusted an Alertmanager is not told when an alert ends: it
// might take that for the past, and the alert for resolved.
func TestAlertmanagerWithWrongClock(t *testing.T) {
	b := newBench(t, newMemory(), manager("m"))
	m := b.queues["m"].target.(*alertmanager)
	for _, trusted := range []bool{false, true} {
		m.options.TimeOfDay = func() (time.Time, bool) { return start, trusted }
		text, err := json.Marshal(m.postable(firing("80", "m")))
		if err != nil || strings.Contains(string(text), "endsAt") != trusted {
			t.Errorf("trusted %v: %s, %v", trusted, text, err)
		}
	}
}

// How long ago something was told is kept by the time that is trusted, whatever the clock
// of this process and of the next one says.
func TestSinceOverRestart(t *testing.T) {
	b := newBench(t, newMemory())
	set := func(now, timeOfDay time.Time) {
		b.options.Now = func() time.Time { return now }
		b.options.TimeOfDay = func() (time.Time, bool) { return timeOfDay, false }
	}
	wrong := start.AddDate(2, 0, 0)
	set(wrong, start)
	kept := b.kept(saved{Since: wrong.Add(-10 * time.Minute)})
	for name, next := range map[string]struct {
		now, timeOfDay time.Time
		ago            time.Duration
	}{
		"behind":  {start.AddDate(-2, 0, 0), start.Add(time.Minute), 11 * time.Minute},
		"right":   {start.Add(time.Minute), start.Add(time.Minute), 11 * time.Minute},
		"to come": {start, start.Add(-time.Hour), 0},
	} {
		set(next.now, next.timeOfDay)
		if ago := next.now.Sub(b.found(kept).Since); ago != next.ago {
			t.Errorf("%s: %s ago, want %s", name, ago, next.ago)
		}
	}
	if s := b.found(b.kept(saved{})); !s.Since.IsZero() {
		t.Errorf("never is %s", s.Since)
	}
}
