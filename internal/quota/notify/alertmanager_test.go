// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/nettally/nettally/internal/quota"
)

// What fires is told again each minute, also after a restart, and by its end for five
// minutes, after which nothing is left.
func TestAlertmanagerIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBench(t, store, manager("m"))
		m := b.catch("m")
		stop := b.run()
		b.Send(firing("50", "m"))
		time.Sleep(againAfter*5/2 + time.Second)
		stop()
		wantSaid(t, m, "50 firing", "50 firing", "50 firing")

		time.Sleep(time.Hour)
		b.restart()
		m = b.catch("m")
		stop = b.run()
		time.Sleep(againAfter + time.Second)
		wantSaid(t, m, "50 firing", "50 firing")
		b.Send(resolved("50", "m"))
		time.Sleep(time.Hour)
		stop()
		wantSaid(t, m, append([]string{"50 firing", "50 firing"}, slices.Repeat([]string{"50 resolved"}, 5)...)...)
		if got := testutil.ToFloat64(b.metrics.of("m").sent); got != 1 {
			t.Errorf("sent is %v since the restart, want 1: what is told again counts once", got)
		}
		if n := len(store.threads(t)); n != 0 {
			t.Errorf("%d threads are left", n)
		}
	})
}

// What began and ended while the Alertmanager was away is told as firing for a minute.
func TestAlertmanagerSeesWhatItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), manager("m"))
		m := b.catch("m")
		m.set(func(quota.Alert) error { return errAway })
		stop := b.run()
		b.Send(firing("50", "m"))
		b.Send(resolved("50", "m"))
		time.Sleep(time.Hour)
		m.set(nil)
		time.Sleep(pauseLast + pauseLeast)
		wantSaid(t, m, "50 firing")
		time.Sleep(againAfter)
		got := m.said()
		stop()
		if diff := cmp.Diff([]string{"50 firing", "50 resolved"}, got[:min(len(got), 2)]); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
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
		{"end of what it was not told", []quota.Alert{rate(1, "resolved")}, false,
			[]string{"rate/1 resolved"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, newMemory(), manager("m"))
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
				time.Sleep(pauseLast - time.Second)
				wantSaid(t, m, test.want...)
				stop()
			})
		})
	}
}

// A hundred alerts are one request; if it is refused for one of them, the others are
// told one by one.
func TestAlertmanagerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newMemory(), manager("m"))
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
		if got := testutil.ToFloat64(b.metrics.of("m").dropped); got != 1 {
			t.Errorf("dropped is %v, want 1", got)
		}
		time.Sleep(againAfter + time.Second)
		stop()
		if n := len(m.attempts()); n != 102 {
			t.Errorf("%d attempts a minute later, want one more", n)
		}
	})
}

func TestAlertmanagerRequest(t *testing.T) {
	site := newSite(t)
	b := newBench(t, newMemory(), Config{Name: "m", Alertmanager: &Alertmanager{URL: site.URL + "/prefix/"}})
	a := firing("80", "m")
	a.Labels = map[string]string{"com.docker.compose.service": "web", "1st": "yes", "key": "not this", "bad": "\xff"}
	a.PeriodStart, a.PeriodEnd, a.Projected, a.Used = start, start.Add(24*time.Hour), 123, 1<<40
	before := time.Now()
	if err := b.queues["m"].target.deliver(t.Context(), []quota.Alert{a, resolved("80", "m")}); err != nil {
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
	b := newBench(t, newMemory(), manager("m"))
	m := b.queues["m"].target.(*alertmanager)
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
	b := newBench(t, newMemory(), Config{Name: "m", Alertmanager: &Alertmanager{URL: site.URL, HTTPConfigFile: path}})
	target := b.queues["m"].target
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
