// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// While the host's clock is not trusted an Alertmanager is not told when an alert ends: it
// might take that for the past, and the alert for resolved.
func TestAlertmanagerWithWrongClock(t *testing.T) {
	b := newBench(t, managed("m"))
	m := newTarget(b.configs[0], b.options).(*alertmanager)
	for _, trusted := range []bool{false, true} {
		m.options.TimeOfDay = func() (time.Time, bool) { return start, trusted }
		text, err := json.Marshal(m.postable(firing("80", "m")))
		if err != nil || strings.Contains(string(text), "endsAt") != trusted {
			t.Errorf("trusted %v: %s, %v", trusted, text, err)
		}
	}
}

// How long an alert is told as firing goes by the monotonic clock, and not by one that is set.
func TestAlertmanagerWhileClockIsSet(t *testing.T) {
	for _, off := range []time.Duration{-2 * 365 * 24 * time.Hour, 2 * 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, managed("m"))
			began := time.Now()
			b.options.TimeOfDay = func() (time.Time, bool) {
				if time.Since(began) < 10*time.Second {
					return start, false
				}
				return start.Add(off), true
			}
			m := b.catch("m")
			stop := b.run()
			b.Send(firing("50", "m"))
			time.Sleep(11 * time.Second)
			b.Send(resolved("50", "m"))
			time.Sleep(firesAtLeast - 12*time.Second)
			wantSaid(t, m, "50 firing")
			time.Sleep(time.Second)
			synctest.Wait()
			wantSaid(t, m, "50 firing", "50 resolved")
			stop()
		})
	}
}
