// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/quota"
)

// What fires is told again each minute, also after a restart, and its end for five
// minutes, after which nothing is left.
func TestAlertmanagerIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		m := b.catch("m")
		stop := b.run()
		b.Send(firing("50", "m"))
		time.Sleep(againAfter*5/2 + time.Second)
		wantSaid(t, m, "50 firing", "50 firing", "50 firing")
		stop()

		time.Sleep(time.Hour)
		b.restart()
		m = b.catch("m")
		stop = b.run()
		time.Sleep(againAfter + time.Second)
		wantSaid(t, m, "50 firing", "50 firing")
		b.Send(resolved("50", "m"))
		time.Sleep(time.Hour)
		b.box.forget("50")
		time.Sleep(time.Hour)
		if got := b.metric("sent_total", "m"); got != 2 {
			t.Errorf("sent is %v since the restart, want 2: what is told again counts once", got)
		}
		stop()
		wantSaid(t, m, append([]string{"50 firing", "50 firing"}, slices.Repeat([]string{"50 resolved"}, 5)...)...)
	})
}

// What began and ended while the Alertmanager was away is told as firing for a minute, and what
// ended at once, too.
func TestAlertmanagerSeesWhatItMissed(t *testing.T) {
	for _, away := range []time.Duration{0, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, managed("m"))
			m := b.catch("m")
			m.set(func(quota.Alert) error { return errAway })
			stop := b.run()
			b.Send(firing("50", "m"))
			b.Send(resolved("50", "m"))
			time.Sleep(away)
			if got := b.metric("queue", "m"); away > 0 && got != 1 {
				t.Errorf("queue is %v while it is away, want 1", got)
			}
			m.set(nil)
			time.Sleep(pauseLast + pauseLeast)
			if got := m.said(); got[0] != "50 firing" {
				t.Errorf("told %v", got)
			}
			time.Sleep(againAfter)
			got := m.said()
			stop()
			if diff := cmp.Diff([]string{"50 firing", "50 resolved"}, slices.Compact(got)); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// After a restart an end that an earlier process was to tell is told as one, or people would be
// told of the beginning again.
func TestAlertmanagerAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		b.catch("m")
		stop := b.run()
		now := func(a quota.Alert) quota.Alert { a.StartsAt = time.Now(); return a }
		b.Send(now(firing("old", "m")))
		old := now(resolved("old", "m"))
		time.Sleep(10 * time.Minute)
		stop()
		late := now(resolved("late", "m")) // nobody was told of it
		b.Send(old)
		b.Send(late)
		time.Sleep(10 * time.Second)
		b.restart()
		m := b.catch("m")
		stop = b.run()
		synctest.Wait()
		wantSaid(t, m, "old resolved", "late firing")
		time.Sleep(firesAtLeast - 10*time.Second)
		stop()
		if got := m.said(); got[2] != "late resolved" {
			t.Errorf("told %v", got)
		}
	})
}

// What a rule sends to others from now on, or is gone with it, is over for the Alertmanager.
func TestAlertmanagerOfWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		m := b.catch("m")
		stop := b.run()
		b.Send(firing("50", "m"))
		time.Sleep(2*againAfter + time.Second)
		b.Send(firing("50", "other"))
		time.Sleep(time.Hour)
		stop()
		wantSaid(t, m, append(slices.Repeat([]string{"50 firing"}, 3), slices.Repeat([]string{"50 resolved"}, 5)...)...)
	})
}

// Alerts with the same labels are one to an Alertmanager: the end of an older one must
// not end the newer one.
func TestAlertmanagerKnowsLabels(t *testing.T) {
	rate := func(n int, state string) quota.Alert {
		a := alert(fmt.Sprint("rate/", n), state, "m")
		a.Level, a.StartsAt = quota.LevelRate, start.Add(time.Duration(n)*time.Hour)
		return a
	}
	for _, test := range []struct {
		name string
		say  []quota.Alert
		away bool // while all is said
		want []string
	}{
		{"one after the other", []quota.Alert{rate(1, "firing"), rate(1, "resolved"), rate(2, "firing")}, false,
			[]string{"rate/1 firing", "rate/2 firing"}},
		{"while away", []quota.Alert{rate(1, "firing"), rate(1, "resolved"), rate(2, "firing")}, true,
			[]string{"rate/2 firing"}},
		{"late end", []quota.Alert{rate(1, "firing"), rate(2, "firing"), rate(1, "resolved")}, false,
			[]string{"rate/1 firing", "rate/2 firing"}},
		{"both end", []quota.Alert{rate(1, "firing"), rate(1, "resolved"), rate(2, "firing"), rate(2, "resolved")}, false,
			[]string{"rate/1 firing", "rate/2 firing", "rate/2 resolved"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, managed("m"))
				m := b.catch("m")
				stop := b.run()
				if test.away {
					m.set(func(quota.Alert) error { return errAway })
				}
				for _, a := range test.say {
					b.Send(a)
					synctest.Wait()
				}
				m.set(nil)
				time.Sleep(firesAtLeast - time.Second)
				if strings.HasSuffix(test.want[len(test.want)-1], "resolved") {
					time.Sleep(time.Second)
				}
				synctest.Wait()
				wantSaid(t, m, test.want...)
				b.box.forget("rate/1")
				time.Sleep(time.Hour)
				for _, s := range m.said()[len(test.want):] {
					if s != test.want[len(test.want)-1] {
						t.Errorf("told %s in the end", s)
					}
				}
				stop()
			})
		})
	}
}

// Of two alerts with the same labels the one that fires is told, also if it is older.
func TestAlertmanagerFiringWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		m := b.catch("m")
		stop := b.run()
		newer := firing("newer", "m")
		newer.Level, newer.StartsAt = "older", start.Add(time.Minute)
		b.Send(firing("older", "m"))
		b.Send(newer)
		time.Sleep(firesAtLeast + time.Second)
		newer.State, newer.EndsAt = quota.Resolved, start.Add(time.Hour)
		b.Send(newer)
		before := len(m.said())
		time.Sleep(10 * firesAtLeast)
		stop()
		told := m.said()[before:]
		if diff := cmp.Diff([]string{"older firing"}, slices.Compact(told)); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		if len(told) < 9 {
			t.Errorf("told %d times in ten minutes", len(told))
		}
	})
}

// Nothing is left of alerts that are over, whether they were told or another took their place.
func TestAlertmanagerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		w := &worker{config: b.configs[0], target: &receiver{}, source: b.box, log: b.options.Log, series: &series{}, now: time.Now}
		m := newManager(w, b.options)
		for n := range 3 { // with the same labels
			a := firing(fmt.Sprint(n), "m")
			a.Level, a.StartsAt = "x", start.Add(time.Duration(n)*time.Second)
			b.Send(a)
			m.round(t.Context())
			a.State, a.EndsAt = quota.Resolved, a.StartsAt
			b.Send(a)
			m.round(t.Context())
		}
		for range 20 {
			time.Sleep(time.Minute)
			m.round(t.Context())
		}
		for n := range 3 {
			b.box.forget(fmt.Sprint(n))
		}
		m.round(t.Context())
		if len(m.reports) > 0 {
			t.Errorf("%d reports are left", len(m.reports))
		}
	})
}

// A hundred alerts are one request; if it is refused for one of them, the others are
// told one by one.
func TestAlertmanagerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		m := b.catch("m")
		m.set(refuseBad)
		for i := range 99 {
			b.Send(firing(fmt.Sprint(i), "m"))
		}
		b.Send(firing("bad", "m"))
		stop := b.run()
		synctest.Wait()
		if n := len(m.attempts()); n != 101 {
			t.Errorf("%d attempts, want one for all and 100", n)
		}
		if n := len(m.said()); n != 99 {
			t.Errorf("told of %d alerts, want 99", n)
		}
		if got := b.metric("dropped_total", "m"); got != 1 {
			t.Errorf("dropped is %v, want 1", got)
		}
		time.Sleep(againAfter + time.Second)
		stop()
		if n := len(m.attempts()); n != 102 {
			t.Errorf("%d attempts a minute later, want one more", n)
		}
	})
}

// An alert whose end is refused is no longer told as firing, and so the Alertmanager ends it.
func TestAlertmanagerRefusesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, managed("m"))
		m := b.catch("m")
		m.set(func(a quota.Alert) error {
			if a.State == quota.Resolved {
				return &failure{cause: errors.New("it answered 400"), permanent: true}
			}
			return nil
		})
		stop := b.run()
		b.Send(firing("a", "m"))
		time.Sleep(firesAtLeast + time.Second)
		b.Send(resolved("a", "m"))
		time.Sleep(time.Hour)
		stop()
		wantSaid(t, m, "a firing", "a firing")
		if got := b.metric("dropped_total", "m"); got != 1 {
			t.Errorf("dropped is %v, want 1", got)
		}
	})
}

func TestAlertmanagerRequest(t *testing.T) {
	site := newSite(t)
	b := newBench(t, Config{Name: "m", Alertmanager: &Alertmanager{URL: site.URL + "/prefix/"}})
	a := firing("80", "m")
	a.Labels = map[string]string{"com.docker.compose.service": "web", "1st": "yes", "key": "not this", "bad": "\xff"}
	a.PeriodStart, a.PeriodEnd, a.Projected, a.Used = start, start.Add(24*time.Hour), 123, 1<<40
	before := time.Now()
	if err := b.deliverTo("m", a, resolved("80", "m")); err != nil {
		t.Fatal(err)
	}
	requests, _ := site.got()
	if len(requests) != 1 || requests[0].path != "/prefix/api/v2/alerts" {
		t.Fatalf("requests: %+v", requests)
	}
	var got []postable
	if err := json.Unmarshal(requests[0].body, &got); err != nil {
		t.Fatal(err)
	}
	want := postable{
		StartsAt: start,
		Labels: map[string]string{"alertname": "NettallyQuota", "quota": "monthly", "key": "web-1", "level": "80", "instance": "host-1",
			"com_docker_compose_service": "web", "_1st": "yes", "bad": "\uFFFD"},
		Annotations: map[string]string{"summary": "web-1 has used 80", "used": "1099511627776 bytes", "limit": "100 bytes",
			"period_start": "2026-03-10T12:30:00Z", "period_end": "2026-03-11T12:30:00Z", "projected": "123 bytes"},
		GeneratorURL: "http://nettally.example:9819/",
	}
	if left := got[0].EndsAt.Sub(before); left < firesFor || left > firesFor+10*time.Second {
		t.Errorf("it fires for %s, want %s", left, firesFor)
	}
	got[0].EndsAt = time.Time{}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("firing (-want +got):\n%s", diff)
	}
	if want := start.Add(time.Hour); !got[1].EndsAt.Equal(want) {
		t.Errorf("resolved ends at %s, want %s", got[1].EndsAt, want)
	}
	if got := requests[0].header.Get("User-Agent"); got != "nettally/1.2.3" {
		t.Errorf("User-Agent is %q", got)
	}
}

// An Alertmanager refuses ends before starts, which a clock that was set back makes.
func TestAlertmanagerClockSetBack(t *testing.T) {
	b := newBench(t, managed("m"))
	m := newTarget(b.configs[0], b.options).(*alertmanager)
	end := resolved("80", "m")
	end.EndsAt = start.Add(-time.Hour)
	future := firing("80", "m")
	future.StartsAt = time.Now().Add(100 * time.Hour)
	for _, a := range []quota.Alert{end, future} {
		if p := m.postable(a); p.StartsAt.After(p.EndsAt) {
			t.Errorf("%s: from %s to %s", a.State, p.StartsAt, p.EndsAt)
		}
	}
}

// The credentials are read when they change.
func TestHTTPConfigFile(t *testing.T) {
	site := newSite(t)
	site.set(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "nettally" || password != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	path := write(t, "http.yaml", "basic_auth: {username: nettally, password: wrong}\n", 0o600)
	b := newBench(t, Config{Name: "m", Alertmanager: &Alertmanager{URL: site.URL, HTTPConfigFile: path}})
	target := newTarget(b.configs[0], b.options)
	t.Cleanup(target.close)
	tell := func() error { return target.deliver(t.Context(), []quota.Alert{firing("80", "m")}) }
	if err := tell(); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a wrong password: %v, want 401", err)
	}
	rewrite(t, path, "basic_auth: {username: nettally, password: s3cret}\n")
	if err := tell(); err != nil {
		t.Errorf("with the right password: %v", err)
	}
	rewrite(t, path, "basic_auth: {user: nettally}\n")
	if err := tell(); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "read HTTP configuration "+path) {
		t.Errorf("with an unknown key: %v, want one line that names the file", err)
	}
}
