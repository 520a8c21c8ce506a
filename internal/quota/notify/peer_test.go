// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet/need"
)

// peer is a real Alertmanager, with somebody whom it notifies and a proxy that we
// speak to it through.
type peer struct {
	t        *testing.T
	folder   string
	address  string
	receiver *site
	proxy    *httptest.Server
	began    map[string]time.Time // of alerts, by id
	fails    atomic.Bool          // the proxy answers 500
	hung     bool                 // what it was sent meanwhile it has taken in any order
	log      lines
	cmd      *exec.Cmd
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	need.Commands(t, "prometheus-alertmanager")
	p := &peer{t: t, began: map[string]time.Time{}, folder: t.TempDir(), address: freeAddress(t), receiver: newSite(t)}
	// A resolve_timeout below the time in which alerts are told again: ours must not
	// depend on it.
	config := fmt.Sprintf(`global: {resolve_timeout: 500ms}
route: {receiver: us, group_by: ["..."], group_wait: 300ms, group_interval: 300ms, repeat_interval: 1h}
receivers: [{name: us, webhook_configs: [{url: %q, send_resolved: true}]}]
`, p.receiver.URL)
	if err := os.WriteFile(filepath.Join(p.folder, "alertmanager.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: p.address})
	forward.ErrorLog = log.New(io.Discard, "", 0)
	p.proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.fails.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(p.proxy.Close)
	p.start()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("log of the Alertmanager:\n%s", p.log.String())
		}
	})
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func (p *peer) start() {
	p.t.Helper()
	p.cmd = exec.Command("prometheus-alertmanager", "--config.file="+filepath.Join(p.folder, "alertmanager.yml"),
		"--storage.path="+filepath.Join(p.folder, "data"), "--web.listen-address="+p.address, "--cluster.listen-address=",
		"--log.level=debug")
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	// It answers before it heeds signals, but reloads only once it does.
	eventually(p.t, "the Alertmanager is up", func() bool {
		answer, err := http.Post("http://"+p.address+"/-/reload", "", nil)
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// stop ends it in order, so that it knows later on whom it has notified of what.
func (p *peer) stop() {
	p.t.Helper()
	if p.cmd == nil {
		return
	}
	p.signal(unix.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("alertmanager: %v", err)
	}
	p.cmd = nil
}

func (p *peer) signal(s unix.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("signal the Alertmanager: %v", err)
	}
}

// active returns the levels that fire by its API.
func (p *peer) active() (levels []string) {
	p.t.Helper()
	answer, err := http.Get("http://" + p.address + "/api/v2/alerts?active=true")
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	var alerts []struct {
		Labels, Annotations map[string]string
		GeneratorURL        string
		Status              struct{ State string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&alerts); err != nil {
		p.t.Error(err)
	}
	for _, a := range alerts {
		if a.Labels["alertname"] != "NettallyQuota" || a.Labels["instance"] != "host-1" || a.GeneratorURL == "" ||
			a.Annotations["summary"] == "" || a.Status.State != "active" {
			p.t.Errorf("alert %+v", a)
		}
		levels = append(levels, a.Labels["level"])
	}
	slices.Sort(levels)
	return levels
}

func (p *peer) waitActive(want ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%v fire", want), func() bool { return slices.Equal(p.active(), want) })
}

// notified returns what the receiver was told, as "level state".
func (p *peer) notified() (all []string) {
	_, taken := p.receiver.got()
	for _, r := range taken {
		var told struct {
			Alerts []struct {
				Status string
				Labels map[string]string
			}
		}
		if err := json.Unmarshal(r.body, &told); err != nil {
			p.t.Error(err)
		}
		for _, a := range told.Alerts {
			all = append(all, a.Labels["level"]+" "+a.Status)
		}
	}
	slices.Sort(all)
	return all
}

// bench returns a dispatcher that tells the Alertmanager again each second.
func (p *peer) bench() *bench {
	b := newBench(p.t, Config{Name: "m", Timeout: time.Second, Alertmanager: &Alertmanager{URL: p.proxy.URL}})
	p.hasten(b)
	return b
}

// send sends an alert that has begun just now, or has ended: an Alertmanager is in a
// hurry with old ones.
func (p *peer) send(b *bench, a quota.Alert) {
	if _, began := p.began[a.ID]; !began {
		p.began[a.ID] = time.Now()
	}
	a.StartsAt = p.began[a.ID]
	if a.State == quota.Resolved {
		a.EndsAt = time.Now()
	}
	b.Send(a)
}

func (p *peer) hasten(b *bench) { b.again, b.least = time.Second, time.Second }

func (p *peer) wantNotified(want ...string) {
	p.t.Helper()
	got := func() []string {
		if p.hung {
			return slices.Compact(p.notified()) // an old beginning after the end is told, and ended, again
		}
		return p.notified()
	}
	eventually(p.t, fmt.Sprintf("the receiver has %d notifications", len(want)), func() bool { return len(got()) >= len(want) })
	if diff := cmp.Diff(want, got()); diff != "" {
		p.t.Errorf("notified (-want +got):\n%s", diff)
	}
}

// An Alertmanager shows what fires for as long as it does, over restarts of ours and of
// its own, and notifies its receiver once of each beginning and end.
func TestRealAlertmanager(t *testing.T) {
	p := newPeer(t)
	b := p.bench()
	stop := b.run()
	p.send(b, firing("50", "m"))
	p.waitActive("50")
	p.send(b, firing("80", "m"))
	p.waitActive("50", "80")
	time.Sleep(3 * time.Second)
	p.waitActive("50", "80")
	p.wantNotified("50 firing", "80 firing")

	p.send(b, resolved("50", "m"))
	p.waitActive("80")
	p.wantNotified("50 firing", "50 resolved", "80 firing")

	stop()
	b.restart()
	p.hasten(b)
	stop = b.run()
	time.Sleep(time.Second) // until it has noted itself that it has notified
	p.stop()
	p.start()
	p.waitActive("80") // it keeps no alerts: it was told again
	time.Sleep(2 * time.Second)
	p.wantNotified("50 firing", "50 resolved", "80 firing")

	p.send(b, resolved("80", "m"))
	p.waitActive()
	time.Sleep(3 * time.Second) // the end is told again, too
	stop()
	p.wantNotified("50 firing", "50 resolved", "80 firing", "80 resolved")
}

// Whatever an Alertmanager suffers from, its receiver learns of all that happened
// meanwhile, once.
func TestRealAlertmanagerOutages(t *testing.T) {
	for _, test := range []struct {
		name        string
		begin, over func(*peer)
	}{
		{"down", (*peer).stop, (*peer).start},
		{"hangs", func(p *peer) { p.signal(unix.SIGSTOP) }, func(p *peer) { p.hung = true; p.signal(unix.SIGCONT) }},
		{"answers 500", func(p *peer) { p.fails.Store(true) }, func(p *peer) { p.fails.Store(false) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			b := p.bench()
			stop := b.run()
			p.send(b, firing("50", "m"))
			p.waitActive("50")
			p.wantNotified("50 firing")

			time.Sleep(time.Second) // until it has noted itself that it has notified
			test.begin(p)
			for _, a := range []quota.Alert{firing("80", "m"), resolved("50", "m"), firing("100", "m"), resolved("80", "m")} {
				p.send(b, a)
				time.Sleep(200 * time.Millisecond)
			}
			time.Sleep(time.Second)
			test.over(p)
			p.waitActive("100")
			time.Sleep(2 * time.Second)
			stop()
			p.wantNotified("100 firing", "50 firing", "50 resolved", "80 firing", "80 resolved")
		})
	}
}

// A test alert is one that people can see.
func TestRealAlertmanagerTest(t *testing.T) {
	p := newPeer(t)
	b := p.bench()
	if err := b.Test(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	p.waitActive("100")
	p.wantNotified("100 firing")
}

// It takes all that is not ours to choose: names, labels and texts.
func TestRealAlertmanagerTakesAnyText(t *testing.T) {
	p := newPeer(t)
	b := p.bench()
	a := firing("80", "m")
	a.Quota, a.Key, a.Summary = "\xff\x00", "", "\xfe\n\"\\"
	a.Labels = map[string]string{"": "x", "0": "y", "a b-ü": "\xff", "empty": "", "instance": "z"}
	if err := b.deliverTo("m", a); err != nil {
		t.Fatal(err)
	}
	p.waitActive("80")
}
